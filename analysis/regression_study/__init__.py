"""The kernel view of score estimation on one data set, from coupling to samples."""
