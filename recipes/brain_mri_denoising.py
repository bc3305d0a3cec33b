"""Brain MRI, denoising at sigma 0.3 with a U-Net.

    python Training_MSE.py --config recipes/brain_mri_denoising.py
    python Evaluation_MSE.py --config recipes/brain_mri_denoising.py

Data: as for brain_mri_dense.py.
Result: after 12 epochs training MSE 0.00313 with noise that is new every time (published, with
the dense autoencoder and fixed noise: 0.0070), validation 0.00281, on pictures of which some
have neighbours in training; test (185 pictures) 23.7 dB and SSIM 0.601, where the noisy pictures
have 12.3 dB and 0.154: a gain of 11.3 dB. At deviations of 0.1, 0.2, 0.4 and 0.5, which it was not
trained for, it gains 3.4, 9.0, 10.9 and 9.7 dB. The network is narrow, so that it trains on a CPU.
Time: 8 minutes on one core (AMD EPYC with AVX-512 bf16).
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
optimizer = "adamw"
learning_rate = 1e-3
crop_size = None
augmentation = False
