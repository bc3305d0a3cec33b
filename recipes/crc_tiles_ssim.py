"""Tiles of H&E slides, SSIM: the settings of the shipped SSIM model.

python Training_SSIM.py --config recipes/crc_tiles_ssim.py --folder_path_train TILES

Data: a folder of 256x256 tiles, one folder below it for each slide or laboratory.
"""
