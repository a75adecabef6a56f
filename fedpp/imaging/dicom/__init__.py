"""Secret zone: DICOM files, their codecs and pixel values."""
