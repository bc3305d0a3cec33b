"""Brain MRI, denoising at sigma 0.3 with a U-Net.

    python Training_MSE.py --config recipes/brain_mri_denoising.py
    python Evaluation_MSE.py --config recipes/brain_mri_denoising.py

Data: as for brain_mri_dense.py. Published, with the dense autoencoder and fixed noise: training
MSE 0.0070 after 12 epochs. A narrow network, so that it trains on a CPU; it has not been run in
full yet.
"""

folder_path_train = "data/brain_mri/Training"
folder_path_test = "data/brain_mri/Testing"
model_saved_location_mse = "checkpoints/brain_mri_denoising"
training_loss_file_mse = "training_loss_brain_mri_denoising.csv"
model_path_mse = "checkpoints/brain_mri_denoising/Final_Model_AE_MSE.pth"
recon_output_mse = "reconstructed_images/brain_mri_denoising"
reconstruction_metrics_mse = "reconstructed_images/brain_mri_denoising.xlsx"

architecture = "unet"
unet_width = 8
noise_std = 0.3
noise_sweep = (0.1, 0.2, 0.3, 0.4, 0.5)
color_mode = "grey"
tile_size = 128
input_normalization = "none"
validation_fraction = 0.05
validation_group = "image"  # The set names no patients.

num_epochs = 12
batch_size_train = 16
learning_rate = 1e-3
crop_size = None
augmentation = False
