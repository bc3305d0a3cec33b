"""Tiles of H&E slides, MSE: the settings of the shipped MSE model.

python Training_MSE.py --config recipes/crc_tiles_mse.py --folder_path_train TILES

Data: a folder of 256x256 tiles, one folder below it for each slide or laboratory.
"""

crop_size = 128
batch_size_train = 8
images_per_epoch = 6400
num_epochs = 16
balance_folders = True
learning_rate = 4e-4
