"""Microscopy, residual autoencoder with a latent of one channel at a quarter of the size.

python Training_MSE.py --config recipes/microscopy_residual.py --folder_path_train TILES
"""

model_saved_location_mse = "checkpoints/microscopy_residual"
training_loss_file_mse = "training_loss_microscopy_residual.csv"
model_path_mse = "checkpoints/microscopy_residual/Final_Model_AE_MSE.pth"
recon_output_mse = "reconstructed_images/microscopy_residual"
reconstruction_metrics_mse = "reconstructed_images/microscopy_residual.xlsx"

architecture = "residual"
residual_blocks = 5
latent_channels = 1

crop_size = 96
batch_size_train = 16
images_per_epoch = 1600
num_epochs = 5
learning_rate = 1e-3
balance_folders = True
