"""Every setting of a run. Literals and comments, nothing else.

`python Training_SSIM.py --help` explains each one with its unit and range. Any of them can be
given for one run as a flag of the same spelling (`--num_epochs 3 --GPUs 0,1`) or in a settings
file of the same form (`--config my_settings.py`).
"""

# ------------------------------------------------------------------
# System
# ------------------------------------------------------------------
GPUs = "0"  # GPU numbers: "0" or "0,1"; "" is the CPU; "all" is whatever the environment shows
num_workers = 2  # Processes that read images

# ------------------------------------------------------------------
# Training
# ------------------------------------------------------------------
# Every image below this folder, however deep
folder_path_train = "input_images/train"

tile_size = 256  # Images are resized to this many pixels: an edge, or (height, width)

num_epochs = 100
batch_size_train = 16  # Images per step, over all GPUs together
images_per_epoch = 0  # Images drawn in an epoch; 0: every training image once
balance_folders = False  # Draw equally often from every folder, however many images it holds

# Checkpoints
model_saved_location_mse = "checkpoints/MSE"
model_saved_location_ssim = "checkpoints/SSIM"
model_saved_location_vae = "checkpoints/VAE"
model_saved_location_vqvae = "checkpoints/VQVAE"
save_interval = 5  # Keep a checkpoint every N epochs
keep_checkpoints = 0  # How many of them to keep; 0: all

# Loss of every epoch
training_loss_file_mse = "training_loss_mse.csv"
training_loss_file_ssim = "training_loss_ssim.csv"
training_loss_file_vae = "training_loss_vae.csv"
training_loss_file_vqvae = "training_loss_vqvae.csv"

# ------------------------------------------------------------------
# Evaluation
# ------------------------------------------------------------------
folder_path_test = "input_images/test"
batch_size_test = 32

# Trained models
model_path_mse = "sample_models/model_auto_encoder_reconstruction_mse.pth"
model_path_ssim = "sample_models/model_auto_encoder_reconstruction_ssim.pth"
model_path_vae = "checkpoints/VAE/Final_Model_AE_VAE.pth"
model_path_vqvae = "checkpoints/VQVAE/Final_Model_AE_VQVAE.pth"

# Side-by-side pictures
recon_output_mse = "reconstructed_images/MSE/"
recon_output_ssim = "reconstructed_images/SSIM/"
recon_output_vae = "reconstructed_images/VAE/"
recon_output_vqvae = "reconstructed_images/VQVAE/"

save_images = "all"  # "all", "none", or a number: so many of the worst, the best and a sample

# Workbooks
reconstruction_metrics_mse = "reconstructed_images/validation_reconstruction_metrics_mse.xlsx"
reconstruction_metrics_ssim = "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx"
reconstruction_metrics_vae = "reconstructed_images/validation_reconstruction_metrics_vae.xlsx"
reconstruction_metrics_vqvae = "reconstructed_images/validation_reconstruction_metrics_vqvae.xlsx"

samples = 16  # New images that Evaluation_VAE.py draws, and steps between two

# ------------------------------------------------------------------
# Images
# ------------------------------------------------------------------
cache = "memory"  # Decoded tiles are kept in "memory", on "disk", or not ("none")
cache_folder = ".tile_cache"
cache_limit_gb = 4.0
color_mode = "rgb"  # "rgb" or "grey"
intensity_range = None  # (lowest, highest) value of deep files; "image": each file's own; or None
slice_axis = 2  # Axis along which a volume is cut into images
input_normalization = "imagenet"  # What the network is fed: "imagenet" statistics, "zscore", "none"
unreadable_images = "skip"  # "skip" and list them at the end, or "stop"
image_check_file = "image_check.xlsx"  # What Check_images.py writes, also as csv

# ------------------------------------------------------------------
# Validation: images that are never trained on
# ------------------------------------------------------------------
folder_path_validation = ""  # A folder of its own; "": a part of the training folder
validation_fraction = 0.1  # How large a part; 0: none
validation_group = "folder"  # What stays together: "folder", "image", or a regular expression

# ------------------------------------------------------------------
# Network and optimisation
# ------------------------------------------------------------------
architecture = "auto_encoder"  # "auto_encoder", "residual", "dense" or "unet"
latent_dim = 512  # Numbers that dense and vae keep of an image
residual_blocks = 5
latent_channels = 1  # Of residual
activation = "relu"  # Of residual
codebook = "ema"  # How vqvae learns its codes: "ema" or "gradient"
codebook_size = 512
code_dim = 64
commitment = 0.25
codebook_decay = 0.99
unet_width = 32

# Terms: mse, l1, ssim, ms_ssim, bce, feature
loss_weights_mse = {"mse": 1.0}
loss_weights_ssim = {"ssim": 1.0}
loss_weights_vae = {"bce": 1.0}  # Summed over pixels
loss_weights_vqvae = {"mse": 1.0}
beta = 1.0  # Weight of the VAE's divergence from its prior
beta_warmup = 0.0  # Part of the steps in which it rises from 0
feature_network = "vgg19"  # Of the term "feature": "vgg19", or a model file of this project
feature_layer = ""  # Such as "features.11"; "": the usual one
feature_weights = ""  # File of the weights of vgg19; "": torchvision downloads them

optimizer = "muon"  # "muon", "adamw" or "adam"
learning_rate = 4e-3  # Of adamw and adam 4e-4
weight_decay = 1e-5
schedule = "cosine"  # "cosine" to zero, or "constant"
warmup_fraction = 0.05  # Part of the steps in which the learning rate rises
weight_averaging = 0.999  # Decay of the running average of the weights; 0: no average
initial_weights = ""  # A model file to start from; "": at random
accumulation = 1  # Pieces that each batch is computed in, to need less memory
gradient_clip = 1.0  # Largest norm of the gradient; 0: no limit
seed = 0
resume = ""  # "": start anew; "auto": go on with the newest checkpoint; or a checkpoint's path

# ------------------------------------------------------------------
# Arithmetic
# ------------------------------------------------------------------
precision = "auto"  # "auto", "bfloat16", "float16", "tf32" or "float32"
compile_model = False  # torch.compile: a minute or more of start-up for faster steps on a GPU
deterministic = False  # The same bits every time, at some cost in speed

# ------------------------------------------------------------------
# Augmentation: the changed image is both what goes in and what should come out
# ------------------------------------------------------------------
augmentation = True
crop_size = 128  # Train on random windows of this size; None: on whole tiles
augment_probability = 0.6  # Of any change but flips and crops, which every image gets
augment_rotation = 45.0
augment_horizontal_flip = 0.5
augment_vertical_flip = 0.5
augment_affine_rotation = 10.0
augment_translate = 0.0
augment_scale = (0.6, 1.7)
augment_shear = 0.0
augment_brightness = 0.2
augment_contrast = 0.2
augment_saturation = 0.2
augment_hue = 0.05
augment_blur_kernel = 5
augment_blur_sigma = (0.1, 0.8)
augment_stain = 0.25

# ------------------------------------------------------------------
# Denoising: noise on what goes in, none on what should come out
# ------------------------------------------------------------------
noise_std = 0.0  # In intensities 0..1; 0: none
noise_fixed = False  # The same noise on an image in every epoch
noise_std_test = None  # In evaluation; None: as the model was trained
noise_sweep = ()  # Further deviations to evaluate, drawn as a curve

# ------------------------------------------------------------------
# Latents and layers: Export_latents.py, Show_layers.py
# ------------------------------------------------------------------
model_path_latents = "sample_models/model_auto_encoder_reconstruction_mse.pth"
folder_path_latents = "input_images"
latents_file = "latents/features.csv"  # Or .npz, or .parquet
latents_pooling = "mean"  # Over height and width; "none": feature maps whole

model_path_layers = "sample_models/model_auto_encoder_reconstruction_mse.pth"
folder_path_layers = "input_images/test"
layers_output = "layer_pictures"
layers_images = 3
layers_channels = "mean"  # Over the channels of a layer, or "all" of them

# ------------------------------------------------------------------
# Sweep: Sweep.py
# ------------------------------------------------------------------
sweep_objective = "mse"  # "mse", "ssim", "vae" or "vqvae"
# What to try: a list of values, (low, high), or (low, high, "log")
sweep_space = {
    "learning_rate": [4e-3, 2e-3, 1e-3, 5e-4, 1e-4],
    "num_epochs": [10, 20, 40],
    "batch_size_train": [16, 32, 64],
    "latent_dim": [512, 1024, 2048],
}
sweep_trials = 20
sweep_folder = "sweeps"
sweep_name = "sweep"
sweep_storage = ""  # Any database URL of Optuna; "": SQLite in the folder
sweep_pruning = True  # End trials early that fall behind

# ------------------------------------------------------------------
# Tracking, beside the csv
# ------------------------------------------------------------------
tracking = ""  # "tensorboard", "wandb", "tensorboard,wandb" or ""
tracking_folder = "tracking"
tracking_images = 8  # Reconstructions logged every epoch
wandb_project = "recon"
wandb_mode = "offline"  # Or "online"
