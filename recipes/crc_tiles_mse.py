"""Tiles of H&E slides, MSE: the first stage of the shipped models.

    python Training_MSE.py --config recipes/crc_tiles_mse.py --folder_path_train TILES
    python Evaluation_MSE.py --config recipes/crc_tiles_mse.py --folder_path_test OTHER_TILES

Data: 256x256 tiles, one folder below TILES for each slide or laboratory; 1 517 of them for the
shipped model (see sample_models/README.md).
Result: after ten epochs PSNR 32.4 dB and SSIM 0.933 on held-out images, 34.5 dB and 0.944 on
another patient. The shipped MSE model had two more epochs (--num_epochs 2 --learning_rate 2e-3),
from the shipped SSIM model: 33.5 dB and 0.950, 35.7 dB and 0.959.
Time: 4 minutes for an epoch on two cores (AMD EPYC with AVX-512 bf16) that do nothing else.
"""

model_saved_location_mse = "checkpoints/crc_tiles_mse"
training_loss_file_mse = "training_loss_crc_tiles_mse.csv"
model_path_mse = "checkpoints/crc_tiles_mse/Final_Model_AE_MSE.pth"
recon_output_mse = "reconstructed_images/crc_tiles_mse"
reconstruction_metrics_mse = "reconstructed_images/crc_tiles_mse.xlsx"

crop_size = 128
batch_size_train = 16
images_per_epoch = 6400
num_epochs = 10
balance_folders = True
optimizer = "muon"
learning_rate = 4e-3
