//! Host matrices in f64, random numbers, and the way to a device and back.

use half::{bf16, f16};
use std::time::SystemTime;
use triton_trtllm::device::{DType, SharedDevice, Tensor};

/// Types of parameters and caches.
pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// xorshift64*.
pub struct Random {
    state: u64,
    pub seed: u64,
}

impl Random {
    /// Of the seed in `OPS_SEED`, or a fresh one.
    pub fn fresh() -> Self {
        let given = std::env::var("OPS_SEED").ok().map(|seed| seed.parse().expect("OPS_SEED is a number"));
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(now);
        println!("OPS_SEED={seed}");
        Self { state: seed | 1, seed }
    }

    pub fn bits(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Uniform in -1 .. 1.
    pub fn number(&mut self) -> f64 {
        self.bits() as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Elements beside a view: none, few enough that no row starts on a vector's boundary, or whole vectors.
    pub fn gap(&mut self) -> usize {
        [0, 3, 8][self.below(3)]
    }

    pub fn matrix(&mut self, rows: usize, cols: usize) -> Host {
        Host { rows, cols, data: (0..rows * cols).map(|_| self.number()).collect() }
    }
}

/// A row-major matrix of exact values.
#[derive(Clone, Debug)]
pub struct Host {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f64>,
}

impl Host {
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    pub fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// Every value as the type holds it.
    pub fn rounded(mut self, dtype: DType) -> Self {
        self.data.iter_mut().for_each(|value| *value = round(*value, dtype));
        self
    }
}

pub fn round(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::BF16 => bf16::from_f64(value).to_f64(),
        DType::I32 => value.trunc(),
    }
}

/// Half a unit in the last place of a number near 1.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::I32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
    }
}

fn encode(values: &[f64], dtype: DType) -> Vec<u8> {
    let element = |&value: &f64| match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(element).collect()
}

fn decode(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let element = |bytes: &[u8]| match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::I32 => f64::from(i32::from_le_bytes(bytes.try_into().unwrap())),
    };
    bytes.chunks_exact(dtype.size()).map(element).collect()
}

/// A matrix on a device: columns of a wider tensor, not-a-number beside them.
pub struct OnDevice {
    whole: Tensor,
    start: usize,
    pub view: Tensor,
}

impl OnDevice {
    /// `gap` elements before and after each row; none: contiguous.
    pub fn new(device: &SharedDevice, host: &Host, dtype: DType, gap: usize) -> Self {
        let width = host.cols + 2 * gap;
        let mut values = vec![f64::NAN; host.rows * width];
        for row in 0..host.rows {
            values[row * width + gap..][..host.cols].copy_from_slice(host.row(row));
        }
        let whole = Tensor::zeros(device, host.rows, width, dtype, "a test").unwrap();
        device.upload(&whole, &encode(&values, dtype)).unwrap();
        let view = whole.columns(gap, host.cols);
        Self { whole, start: gap, view }
    }

    /// Poisoned memory for an output.
    pub fn poisoned(device: &SharedDevice, rows: usize, cols: usize, dtype: DType, gap: usize) -> Self {
        Self::new(device, &Host { rows, cols, data: vec![f64::NAN; rows * cols] }, dtype, gap)
    }

    /// The matrix, after a check that nothing beside it was written.
    pub fn read(&self, device: &SharedDevice) -> Host {
        let mut bytes = vec![0; self.whole.bytes()];
        device.download(&self.whole, &mut bytes).unwrap();
        let values = decode(&bytes, self.whole.dtype());
        let (width, cols) = (self.whole.cols(), self.view.cols());
        let mut host = Host::zeros(self.whole.rows(), cols);
        for row in 0..host.rows {
            let (inside, all) = (self.start..self.start + cols, &values[row * width..(row + 1) * width]);
            let beside = all.iter().enumerate().find(|(col, value)| !inside.contains(col) && !value.is_nan());
            assert!(beside.is_none(), "row {row}: written beside the view: {beside:?}");
            host.row_mut(row).copy_from_slice(&all[inside]);
        }
        host
    }
}

pub fn ids(device: &SharedDevice, ids: &[i32]) -> Tensor {
    let host = Host { rows: 1, cols: ids.len(), data: ids.iter().map(|&id| f64::from(id)).collect() };
    OnDevice::new(device, &host, DType::I32, 0).view
}

/// Asserts `|got - want| <= tolerance` for each element, with the element's own tolerance.
pub fn assert_close(case: &str, got: &Host, want: &Host, tolerance: impl Fn(usize) -> f64) {
    assert_eq!((got.rows, got.cols), (want.rows, want.cols), "{case}: shape");
    for (i, (got, expected)) in got.data.iter().zip(&want.data).enumerate() {
        let (row, col) = (i / want.cols, i % want.cols);
        let within = (got - expected).abs() <= tolerance(i);
        assert!(within, "{case}: [{row}, {col}] is {got}, not {expected}: off by more than {}", tolerance(i));
    }
}
