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
save_interval = 5  # Keep a checkpoint every N epochs
keep_checkpoints = 0  # How many of them to keep; 0: all

# Loss of every epoch
training_loss_file_mse = "training_loss_mse.csv"
training_loss_file_ssim = "training_loss_ssim.csv"

# ------------------------------------------------------------------
# Evaluation
# ------------------------------------------------------------------
folder_path_test = "input_images/test"
batch_size_test = 32

# Trained models
model_path_mse = "sample_models/model_auto_encoder_reconstruction_mse.pth"
model_path_ssim = "sample_models/model_auto_encoder_reconstruction_ssim.pth"

# Side-by-side pictures
recon_output_mse = "reconstructed_images/MSE/"
recon_output_ssim = "reconstructed_images/SSIM/"

save_images = "all"  # "all", "none", or a number: so many of the worst, the best and a sample

# Workbooks
reconstruction_metrics_mse = "reconstructed_images/validation_reconstruction_metrics_mse.xlsx"
reconstruction_metrics_ssim = "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx"

# ------------------------------------------------------------------
# Images
# ------------------------------------------------------------------
cache = "memory"  # Decoded tiles are kept in "memory", on "disk", or not ("none")
cache_folder = ".tile_cache"
cache_limit_gb = 4.0
color_mode = "rgb"  # "rgb" or "grey"
intensity_range = None  # (lowest, highest) value of files deeper than 8 bit; None: their own range
input_normalization = "imagenet"  # What the network is fed: "imagenet" statistics, or "none"
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
architecture = "auto_encoder"
loss_weights_mse = {"mse": 1.0}
loss_weights_ssim = {"ssim": 1.0}
optimizer = "adamw"  # "adam" or "adamw"
learning_rate = 1e-3
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
compile_model = False  # torch.compile: minutes of start-up for faster steps on a GPU
deterministic = False  # The same bits every time, at some cost in speed

# ------------------------------------------------------------------
# Augmentation: the changed image is both what goes in and what should come out
# ------------------------------------------------------------------
augmentation = True
crop_size = None  # Train on random windows of this size: an edge, or (height, width)
augment_probability = 1.0  # Of any change but flips and crops, which every image gets
augment_rotation = 45.0
augment_horizontal_flip = 0.5
augment_vertical_flip = 0.5
augment_affine_rotation = 10.0
augment_translate = 0.1
augment_scale = (0.9, 1.1)
augment_shear = 5.0
augment_brightness = 0.2
augment_contrast = 0.2
augment_saturation = 0.2
augment_hue = 0.1
augment_blur_kernel = 5
augment_blur_sigma = (0.1, 2.0)
augment_stain = 0.0
