//! Simulator: a bounded number of seeds.
