//! The hardware: fused operations and memory behind one object-safe trait.
