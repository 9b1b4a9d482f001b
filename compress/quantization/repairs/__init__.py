"""What is done for accuracy after calibration, one file each; `passes.py` has the list in order."""
