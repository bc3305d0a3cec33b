"""Tiles of H&E slides, SSIM: the settings of the shipped SSIM model.

    python Training_SSIM.py --config recipes/crc_tiles_ssim.py --folder_path_train TILES
    python Evaluation_SSIM.py --config recipes/crc_tiles_ssim.py --folder_path_test OTHER_TILES

It starts from a model trained with MSE: SSIM alone leaves colours open at first, and a little L1
holds them.

Data: 256x256 tiles, one folder below TILES for each slide or laboratory; 1 517 of them for the
shipped model (see sample_models/README.md).
Result: PSNR 33.0 dB and SSIM 0.952 on held-out images, 35.2 dB and 0.961 on another patient.
Time: 9 minutes on two cores (AMD EPYC with AVX-512 bf16).
"""

model_saved_location_ssim = "checkpoints/crc_tiles_ssim"
training_loss_file_ssim = "training_loss_crc_tiles_ssim.csv"
model_path_ssim = "checkpoints/crc_tiles_ssim/Final_Model_AE_SSIM.pth"
recon_output_ssim = "reconstructed_images/crc_tiles_ssim"
reconstruction_metrics_ssim = "reconstructed_images/crc_tiles_ssim.xlsx"

initial_weights = "sample_models/model_auto_encoder_reconstruction_mse.pth"
loss_weights_ssim = {"ssim": 0.85, "l1": 0.15}
crop_size = 128
batch_size_train = 16
images_per_epoch = 6400
num_epochs = 2
balance_folders = True
optimizer = "muon"
learning_rate = 2e-3
