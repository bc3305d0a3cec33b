"""Brain MRI, variational autoencoder.

    python Training_VAE.py --config recipes/brain_mri_vae.py
    python Evaluation_VAE.py --config recipes/brain_mri_vae.py

Data: as for brain_mri_dense.py.
Result: after 40 epochs a training loss of 6 013.5 for each image, 83.4 of it KL; times 16, 96 217
for a batch of the published size, 94 883 of it reconstruction (published: 97 322.5 after 40
epochs). Test (185 pictures) MSE 0.0082, 22.3 dB, SSIM 0.605. With `--optimizer adamw
--learning_rate 1e-3 --batch_size_train 16` it ended at 97 659.
Time: 86 s for an epoch on one core that did nothing else, 58 minutes for all (AMD EPYC with AVX-512
bf16).
"""

folder_path_train = "data/brain_mri/Training"
folder_path_test = "data/brain_mri/Testing"
model_saved_location_vae = "checkpoints/brain_mri_vae"
training_loss_file_vae = "training_loss_brain_mri_vae.csv"
model_path_vae = "checkpoints/brain_mri_vae/Final_Model_AE_VAE.pth"
recon_output_vae = "reconstructed_images/brain_mri_vae"
reconstruction_metrics_vae = "reconstructed_images/brain_mri_vae.xlsx"

latent_dim = 512
color_mode = "grey"
tile_size = 128
input_normalization = "none"
validation_fraction = 0.05
# The set names no patients; neighbouring numbers are often of the same one, so tens stay together.
validation_group = r"^(.*?)\d?\D*$"

num_epochs = 40
batch_size_train = 32
optimizer = "muon"
learning_rate = 2e-3
augmentation = False
