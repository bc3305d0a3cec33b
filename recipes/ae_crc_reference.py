"""The published settings of AE_CRC (arXiv:2511.00383), for comparing with it.

    python Training_SSIM.py --config recipes/ae_crc_reference.py --folder_path_train TILES
    python Evaluation_SSIM.py --config recipes/ae_crc_reference.py --folder_path_test OTHER_TILES

Adam at a constant rate, whole tiles, its ranges of augmentation, single precision. What it reports,
28.86 dB on 18 tiles of its own, came from about 100 000 tiles. Two of its faults stay mended: the
target is not normalised, and SSIM is Wang's.
Result: after 3 epochs of 1 517 tiles, `--num_epochs 3`, 12.9 dB and SSIM 0.540 on 425 tiles of
another patient, 13.3 dB and 0.378 on 318 held-out tiles: SSIM leaves colours open at first, and 72
steps are few.
Time: 4 minutes for an epoch on two cores (AMD EPYC with AVX-512).
"""

model_saved_location_ssim = "checkpoints/ae_crc_reference"
training_loss_file_ssim = "training_loss_ae_crc_reference.csv"
model_path_ssim = "checkpoints/ae_crc_reference/Final_Model_AE_SSIM.pth"
recon_output_ssim = "reconstructed_images/ae_crc_reference"
reconstruction_metrics_ssim = "reconstructed_images/ae_crc_reference.xlsx"

optimizer = "adam"
learning_rate = 1e-4
weight_decay = 1e-5
schedule = "constant"
warmup_fraction = 0.0
weight_averaging = 0.0
gradient_clip = 0.0
batch_size_train = 64
precision = "float32"
validation_fraction = 0.0
crop_size = None
augment_probability = 1.0
augment_translate = 0.1
augment_scale = (0.9, 1.1)
augment_shear = 5.0
augment_hue = 0.1
augment_blur_sigma = (0.1, 2.0)
augment_stain = 0.0
