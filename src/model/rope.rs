//! Rotary position embedding: which frequencies, and the table of cosines and sines.
//!
//! Where frequencies depend on the length (dynamic, longrope), it is the longest that a request may become, so that all of
//! its keys fit each other: of longrope, that of each request, of dynamic the `max_seq_len` that the model is loaded with.

use super::Section;
use crate::error::{Error, Result};
use serde_json::Value;
use std::f64::consts::PI;

/// Rotary embedding of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Rotated elements of each head, even.
    pub rotary_dim: usize,
    pub scaling: RopeScaling,
    pub max_positions: usize,
}

/// How frequencies are changed for contexts longer than the original one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Linear { factor: f64 },
    Dynamic { factor: f64 },
    Yarn(Yarn),
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64 },
    LongRope(LongRope),
}

/// Source: Peng et al., "YaRN: Efficient context window extension of large language models", 2023.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub truncate: bool,
    /// Factor of cosines and sines.
    pub multiplier: f64,
    /// What DeepSeek's models multiply queries and keys by, each: 1 without `mscale_all_dim`.
    pub all_dim_magnitude: f64,
}

/// Source: Ding et al., "LongRoPE: Extending LLM context window beyond 2 million tokens", 2024.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    pub short_factor: Vec<f64>,
    pub long_factor: Vec<f64>,
    pub original: f64,
    pub short_multiplier: f64,
    pub long_multiplier: f64,
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    pub fn from_config(config: &Section, head_dim: usize, max_positions: usize) -> Result<Self> {
        let section = match config.section("rope_parameters")? {
            Some(section) => Some(section),
            None => config.section("rope_scaling")?,
        };
        if let Some(section) = section.as_ref().filter(|section| section.values().any(Value::is_object)) {
            return Err(Error::unsupported(format!(
                "{} differs from layer to layer, which this family does not support",
                section.origin()
            )));
        }
        let lookup = |keys: &[&'static str]| match &section {
            Some(section) => {
                Ok(section.positive(keys)?.map_or_else(|| config.positive(keys), |found| Ok(Some(found)))?)
            }
            None => config.positive(keys),
        };
        let theta = lookup(&["rope_theta", "rotary_emb_base", "rope_base"])?.unwrap_or(10_000.0);
        let fraction =
            lookup(&["partial_rotary_factor", "rope_pct", "rotary_pct", "rotary_emb_fraction"])?.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * fraction) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "{}: head_dim {head_dim} with a rotary fraction of {fraction} rotates {rotary_dim} elements; it must \
                 be an even number from 2 to {head_dim}",
                config.origin()
            )));
        }
        let scaling = match &section {
            Some(section) => RopeScaling::from_config(section, config, rotary_dim, max_positions)?,
            None => RopeScaling::None,
        };
        Ok(Self { theta, rotary_dim, scaling, max_positions })
    }

    /// The longest sequence that the frequencies are meant for.
    pub fn longest_tokens(&self) -> usize {
        let longest = match &self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => self.max_positions as f64 * factor,
            RopeScaling::Yarn(yarn) => yarn.original * yarn.factor,
            _ => 0.0,
        };
        self.max_positions.max(longest as usize)
    }

    /// The length up to which sequences have frequencies of their own, where longer ones may come.
    pub fn border(&self, max_seq_len: usize) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope(long) if long.short_factor != long.long_factor => {
                Some(long.original as usize).filter(|&border| border < max_seq_len)
            }
            _ => None,
        }
    }

    /// What the longest sequence decides of the rotation; `has_both`: [`Rope::border`] is kept.
    pub fn chosen_for(&self, max_seq_len: usize, has_both: bool) -> Option<String> {
        let (what, until) = match (self.border(max_seq_len), &self.scaling) {
            (Some(border), _) if has_both => {
                return Some(format!(
                    "the short factors for requests of up to {border} tokens, prompt and output together, the long ones \
                     for others"
                ));
            }
            (Some(border), _) => ("the long factors", border),
            (None, RopeScaling::Dynamic { .. }) => ("frequencies for that length", self.max_positions),
            _ => return None,
        };
        (max_seq_len > until).then(|| format!("{what} for all requests: max_seq_len is {max_seq_len}, beyond {until}"))
    }

    /// Inverse frequencies `[rotary_dim / 2]` and the factor of cosines and sines.
    pub fn frequencies(&self, max_seq_len: usize) -> (Vec<f64>, f64) {
        let plain = inverse_frequencies(self.theta, self.rotary_dim);
        match &self.scaling {
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|inv| inv / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor } => (self.dynamic(*factor, max_seq_len), 1.0),
            RopeScaling::Yarn(yarn) => (yarn.apply(&plain, self.theta, self.rotary_dim), yarn.multiplier),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let scale = |inv: &f64| llama3(*inv, *factor, *low_freq_factor, *high_freq_factor, *original);
                (plain.iter().map(scale).collect(), 1.0)
            }
            RopeScaling::LongRope(long) => long.apply(&plain, max_seq_len),
        }
    }

    /// `[max_seq_len, rotary_dim]`: `rotary_dim / 2` cosines then as many sines for each position.
    pub fn table(&self, max_seq_len: usize) -> Vec<f32> {
        let (frequencies, multiplier) = self.frequencies(max_seq_len);
        let mut table = Vec::with_capacity(max_seq_len * self.rotary_dim);
        for position in 0..max_seq_len {
            let angles = frequencies.iter().map(|inv| position as f64 * inv);
            table.extend(angles.clone().map(|angle| (angle.cos() * multiplier) as f32));
            table.extend(angles.map(|angle| (angle.sin() * multiplier) as f32));
        }
        table
    }

    fn dynamic(&self, factor: f64, max_seq_len: usize) -> Vec<f64> {
        let max_positions = self.max_positions as f64;
        let length = max_positions.max(max_seq_len as f64);
        let dim = self.rotary_dim as f64;
        let grown = factor * length / max_positions - (factor - 1.0);
        let exponent = if dim > 2.0 { dim / (dim - 2.0) } else { 1.0 };
        inverse_frequencies(self.theta * grown.powf(exponent), self.rotary_dim)
    }
}

impl RopeScaling {
    fn from_config(section: &Section, config: &Section, rotary_dim: usize, max_positions: usize) -> Result<Self> {
        let kind = section.text(&["rope_type", "type"])?.unwrap_or("default");
        let original = match section.positive(&["original_max_position_embeddings"])? {
            Some(original) => Some(original),
            None => config.positive(&["original_max_position_embeddings"])?,
        };
        let factor = || section.positive(&["factor"])?.ok_or_else(|| section.missing(&["factor"]));
        match kind {
            // Three axes of positions, which are equal for text.
            "default" | "mrope" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" => Ok(Self::Dynamic { factor: factor()? }),
            "yarn" => Yarn::from_config(section, original, max_positions).map(Self::Yarn),
            "llama3" => Ok(Self::Llama3 {
                factor: factor()?,
                low_freq_factor: section.positive(&["low_freq_factor"])?.unwrap_or(1.0),
                high_freq_factor: section.positive(&["high_freq_factor"])?.unwrap_or(4.0),
                original: original.unwrap_or(8192.0),
            }),
            "longrope" | "su" => {
                let original = original.ok_or_else(|| section.missing(&["original_max_position_embeddings"]))?;
                LongRope::from_config(section, original, rotary_dim, max_positions).map(Self::LongRope)
            }
            other => Err(Error::unsupported(format!(
                "{}: type \"{other}\" is not supported; supported are default, linear, dynamic, yarn, llama3, longrope",
                section.origin()
            ))),
        }
    }
}

impl Yarn {
    fn from_config(section: &Section, original: Option<f64>, max_positions: usize) -> Result<Self> {
        let given = section.positive(&["factor"])?;
        let original = original.unwrap_or(max_positions as f64);
        let factor = given.unwrap_or(max_positions as f64 / original);
        let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let optional = |key| section.first(&[key]).and_then(|(_, value)| value.as_f64()).filter(|&m| m != 0.0);
        let multiplier =
            match (section.positive(&["attention_factor"])?, optional("mscale"), optional("mscale_all_dim")) {
                (Some(given), ..) => given,
                (None, Some(mscale), Some(all_dim)) => magnitude(mscale) / magnitude(all_dim),
                _ => magnitude(1.0),
            };
        Ok(Self {
            factor,
            original,
            beta_fast: section.positive(&["beta_fast"])?.unwrap_or(32.0),
            beta_slow: section.positive(&["beta_slow"])?.unwrap_or(1.0),
            truncate: section.flag("truncate", true)?,
            multiplier,
            all_dim_magnitude: optional("mscale_all_dim").map_or(1.0, magnitude),
        })
    }

    fn apply(&self, plain: &[f64], theta: f64, rotary_dim: usize) -> Vec<f64> {
        let dim = rotary_dim as f64;
        let correction = |turns: f64| dim * (self.original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        plain.iter().enumerate().map(|(i, inv)| inv / self.factor * ramp(i) + inv * (1.0 - ramp(i))).collect()
    }
}

impl LongRope {
    fn from_config(section: &Section, original: f64, rotary_dim: usize, max_positions: usize) -> Result<Self> {
        let factor = section.positive(&["factor"])?.unwrap_or(max_positions as f64 / original);
        let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let multiplier = section.positive(&["attention_factor"])?.unwrap_or(default);
        Ok(Self {
            short_factor: section.positives("short_factor", rotary_dim / 2)?,
            long_factor: section.positives("long_factor", rotary_dim / 2)?,
            original,
            short_multiplier: section.positive(&["short_mscale"])?.unwrap_or(multiplier),
            long_multiplier: section.positive(&["long_mscale"])?.unwrap_or(multiplier),
        })
    }

    fn apply(&self, plain: &[f64], max_seq_len: usize) -> (Vec<f64>, f64) {
        let (factors, multiplier) = if max_seq_len as f64 > self.original {
            (&self.long_factor, self.long_multiplier)
        } else {
            (&self.short_factor, self.short_multiplier)
        };
        (plain.iter().zip(factors).map(|(inv, factor)| inv / factor).collect(), multiplier)
    }
}

fn inverse_frequencies(theta: f64, rotary_dim: usize) -> Vec<f64> {
    (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64)).collect()
}

/// Source: the rope scaling of Llama 3.1.
fn llama3(inv: f64, factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / inv;
    if wavelength < original / high_freq_factor {
        inv
    } else if wavelength > original / low_freq_factor {
        inv / factor
    } else {
        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * inv / factor + smooth * inv
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rope(config: Value) -> Result<Rope> {
        Rope::from_config(&Section::from_value("config.json", config)?, 4, 64)
    }

    #[test]
    fn without_scaling_the_table_is_the_plain_formula() {
        let rope = rope(json!({"rope_theta": 100.0})).unwrap();
        let table = rope.table(3);
        let expected = [2.0_f64.cos(), 0.2_f64.cos(), 2.0_f64.sin(), 0.2_f64.sin()].map(|x| x as f32);
        assert_eq!(table[8..12], expected);
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let old = rope(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
        let new = rope(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.frequencies(10).0[0], 0.5);
        assert_eq!(old.longest_tokens(), 128);
    }

    #[test]
    fn dynamic_grows_the_base_only_beyond_the_trained_length() {
        let scaled = rope(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})).unwrap();
        let plain = rope(json!({})).unwrap();
        assert_eq!(scaled.frequencies(64), plain.frequencies(64));
        // base' = 10000 * (4 * 128 / 64 - 3)^2 = 250000, and inv[1] = base'^(-1/2)
        assert!((scaled.frequencies(128).0[1] - 1.0 / 500.0).abs() < 1e-12);
    }

    #[test]
    fn longrope_chooses_its_set_by_the_length() {
        let rope = rope(json!({"original_max_position_embeddings": 16, "rope_scaling":
            {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]}}))
        .unwrap();
        assert_eq!(rope.frequencies(16).0, [1.0, 0.005]);
        assert_eq!(rope.frequencies(17).0, [0.25, 0.00125]);
        assert_eq!((rope.border(16), rope.border(17)), (None, Some(16)));
        assert_eq!(rope.chosen_for(16, false), None);
        let told = |has_both| rope.chosen_for(17, has_both).unwrap();
        assert!(told(false).starts_with("the long factors for all requests: max_seq_len is 17, beyond 16"));
        assert!(told(true).starts_with("the short factors for requests of up to 16 tokens"));
        assert!((rope.frequencies(16).1 - (1.0 + 4.0_f64.ln() / 16.0_f64.ln()).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn errors_name_key_and_value() {
        let message = |config| rope(config).unwrap_err().message().to_owned();
        assert!(message(json!({"rope_scaling": {"type": "linear"}})).contains("rope_scaling has no factor"));
        assert!(message(json!({"rope_scaling": {"type": "spiral"}})).contains("\"spiral\" is not supported"));
        assert!(message(json!({"rope_theta": -1.0})).contains("rope_theta is -1.0; it must be"));
        let short = json!({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 8,
            "short_factor": [1.0], "long_factor": [1.0, 1.0]}});
        assert!(message(short).contains("short_factor is [1.0]; it must be a list of 2 numbers"));
    }
}
