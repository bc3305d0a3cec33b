"""Microscopy, residual autoencoder with a latent of one channel at a quarter of the size.

    python Training_MSE.py --config recipes/microscopy_residual.py --folder_path_train TILES
    python Evaluation_MSE.py --config recipes/microscopy_residual.py --folder_path_test CROPS
        --tile_size 181

With the loss that it was made for, the distance in the features of an encoder trained here:
--loss_weights_mse "{'mse': 1, 'feature': 0.05}" --feature_network
sample_models/model_auto_encoder_reconstruction_mse.pth --feature_layer encoder.8

Data: 256x256 tiles to train on (the 1 517 of the shipped models); 187 crops of 181x181 pixels from
tiles of another patient and of held-out images to test on, whose latents are 1x46x46.
Result (published: pictures): 28.1 dB and SSIM 0.854; with the feature loss 28.1 dB and 0.863. By
`python -m benchmarks.feature_distance` the distance in features is 0.0695 after MSE alone, 0.0686
with the feature loss. A later run with MSE alone, on one core: 29.1 dB and 0.866.
Time: 6 minutes, 6 and a half with the feature loss, on two cores (AMD EPYC with AVX-512 bf16).
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
optimizer = "muon"
learning_rate = 4e-3
balance_folders = True
