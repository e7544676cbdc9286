//! INT8 calibration.
