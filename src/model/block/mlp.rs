//! The feed-forward layer: one, or a choice of experts.

use super::names::MlpNames;
use super::parts::{Linear, Part};
use crate::device::{Activation, Elementwise, Tensor, Weight};
use crate::error::Result;
use crate::model::{ExpertWeights, Experts, ModelConfig, Piece, VectorKind, View, WeightLoader};
use crate::ops::Forward;

pub(super) enum Mlp {
    Dense(Dense),
    Experts(Box<Mixture>),
}

pub(super) struct Dense {
    up: Linear,
    gated: bool,
    activation: Activation,
    down: Linear,
}

pub(super) struct Mixture {
    config: Experts,
    activation: Activation,
    router: Linear,
    choice_bias: Option<Tensor>,
    gate_up: Weight,
    gate_up_bias: Option<Tensor>,
    down: Weight,
    down_bias: Option<Tensor>,
    shared: Option<(Dense, Option<Linear>)>,
}

impl Mlp {
    pub(super) fn load(
        config: &ModelConfig,
        loader: &mut WeightLoader<'_>,
        prefix: &str,
        index: usize,
    ) -> Result<Self> {
        match config.experts.as_ref().filter(|experts| experts.layers[index]) {
            Some(experts) => Ok(Self::Experts(Box::new(Mixture::load(config, experts, loader, prefix)?))),
            None => {
                let sizes = (config.intermediate_size, config.mlp_bias);
                Ok(Self::Dense(Dense::load(config, &config.names.mlp, loader, prefix, sizes)?))
            }
        }
    }

    /// Into `out`, summed over the ranks.
    pub(super) fn forward(&self, cx: &Forward<'_>, out: &Tensor, x: &Tensor) -> Result<()> {
        match self {
            Self::Dense(dense) => dense.forward(cx, out, x),
            Self::Experts(mixture) => mixture.forward(cx, out, x),
        }
    }
}

impl Dense {
    fn load(
        config: &ModelConfig,
        names: &MlpNames,
        loader: &mut WeightLoader<'_>,
        prefix: &str,
        (size, bias): (usize, bool),
    ) -> Result<Self> {
        let part = |name: &str, rows: usize| Part::whole(format!("{prefix}.{name}"), rows);
        let (up, down) = match *names {
            MlpNames::Gated { gate, up, down } => (vec![part(gate, size), part(up, size)], down),
            MlpNames::Fused { gate_up, down } => (vec![part(gate_up, 2 * size)], down),
            MlpNames::Plain { up, down } => (vec![part(up, size)], down),
        };
        let flags = (bias, config.names.transposed);
        let gated = !matches!(names, MlpNames::Plain { .. });
        let up = Linear::load(loader, &up, config.hidden_size, flags)?;
        let down = Linear::load(loader, &[part(down, config.hidden_size)], size, flags)?;
        Ok(Self { up, gated, activation: config.activation, down })
    }

    fn forward(&self, cx: &Forward<'_>, out: &Tensor, x: &Tensor) -> Result<()> {
        if self.gated {
            let activated = self.up.forward_gated(cx, x, self.activation)?;
            return self.down.forward_reduce(cx, out, &activated);
        }
        let up = self.up.forward(cx, x)?;
        cx.activate(&up, self.activation)?;
        self.down.forward_reduce(cx, out, &up)
    }
}

impl Mixture {
    fn load(config: &ModelConfig, experts: &Experts, loader: &mut WeightLoader<'_>, prefix: &str) -> Result<Self> {
        let (hidden, count) = (config.hidden_size, experts.count);
        let name = |name: &str| format!("{prefix}.{name}");
        let router = [Part::whole(name(experts.router), count)];
        let router = Linear::load(loader, &router, hidden, (experts.router_bias, false))?;
        let choice_bias = experts.choice_bias.map(|bias| Piece::vector(name(bias), count));
        let choice_bias = choice_bias.map(|bias| loader.vector(&[bias], VectorKind::PerHead)).transpose()?;
        let in_blocks = match experts.weights {
            ExpertWeights::Interleaved { gate_up, .. } => loader.source().contains(&name(&format!("{gate_up}_blocks"))),
            _ => false,
        };
        let (gate_up, down) =
            if in_blocks { blocks(experts, hidden, prefix) } else { matrices(experts, hidden, prefix) };
        let (gate_up, down) = (loader.matrix(&gate_up, hidden)?, loader.matrix(&down, experts.intermediate_size)?);
        let (gate_up_bias, down_bias) = match experts.biased {
            true => {
                let (gate_up, down) = biases(experts, hidden, prefix);
                let load =
                    |loader: &mut WeightLoader<'_>, pieces: &[Piece]| loader.vectors(pieces, count, VectorKind::Bias);
                (Some(load(loader, &gate_up)?), Some(load(loader, &down)?))
            }
            false => (None, None),
        };
        let shared = match experts.shared {
            Some(shared) => {
                let names = MlpNames::Gated { gate: "gate_proj", up: "up_proj", down: "down_proj" };
                let sizes = (shared.intermediate_size, false);
                let dense = Dense::load(config, &names, loader, &name(shared.prefix), sizes)?;
                let gate =
                    shared.gate.map(|gate| Linear::load(loader, &[Part::whole(name(gate), 1)], hidden, (false, false)));
                Some((dense, gate.transpose()?))
            }
            None => None,
        };
        let (config, activation) = (experts.clone(), config.activation);
        Ok(Self { config, activation, router, choice_bias, gate_up, gate_up_bias, down, down_bias, shared })
    }

    fn forward(&self, cx: &Forward<'_>, out: &Tensor, x: &Tensor) -> Result<()> {
        let config = &self.config;
        let logits = self.router.logits(cx, x)?;
        let routed = cx.route(&logits, config.per_token, self.choice_bias.as_ref(), config.rule)?;
        let input = match config.scale_input {
            true => {
                let scaled = cx.activation(x.rows(), x.cols())?;
                cx.combine(&scaled, x, &routed.weights, false)?;
                scaled
            }
            false => x.clone(),
        };
        let count = config.count;
        let gate_up = cx.expert_linear(&input, &self.gate_up, self.gate_up_bias.as_ref(), &routed.ids, count)?;
        let activated = cx.gated_activation(&gate_up, self.activation)?;
        let outputs = cx.expert_linear(&activated, &self.down, self.down_bias.as_ref(), &routed.ids, count)?;
        if let Some((shared, gate)) = &self.shared {
            let always = cx.activation(x.rows(), x.cols())?;
            shared.forward(cx, &always, x)?;
            match gate {
                Some(gate) => {
                    let weight = gate.logits(cx, x)?;
                    cx.map(&weight, Elementwise::Sigmoid)?;
                    cx.combine(out, &always, &weight, false)?;
                }
                None => cx.copy(out, &always)?,
            }
        }
        if config.scale_input {
            return match self.shared {
                Some(_) => cx.add(out, &outputs),
                None => cx.copy(out, &outputs),
            };
        }
        cx.combine(out, &outputs, &routed.weights, self.shared.is_some())
    }
}

/// Gate and up of every expert `[E * 2I, C]`, and down `[E * C, I]`.
fn matrices(experts: &Experts, hidden: usize, prefix: &str) -> (Vec<Piece>, Vec<Piece>) {
    let (count, size) = (experts.count, experts.intermediate_size);
    let name = |name: &str| format!("{prefix}.{name}");
    match experts.weights {
        ExpertWeights::Listed { prefix, gate, up, down } => {
            let of = |expert: usize, part: &str| name(&format!("{prefix}.{expert}.{part}.weight"));
            let gate_up = (0..count).flat_map(|expert| [of(expert, gate), of(expert, up)]);
            let down = (0..count).map(|expert| Piece::matrix(of(expert, down), hidden, size));
            (gate_up.map(|name| Piece::matrix(name, size, hidden)).collect(), down.collect())
        }
        ExpertWeights::Stacked { gate_up, down } => {
            let whole = |name: String, shape: [usize; 3]| {
                vec![Piece { shape: shape.to_vec(), ..Piece::matrix(name, shape[0] * shape[1], shape[2]) }]
            };
            let gate_up = whole(name(&format!("{gate_up}.weight")), [count, 2 * size, hidden]);
            (gate_up, whole(name(&format!("{down}.weight")), [count, hidden, size]))
        }
        ExpertWeights::StackedTransposed { gate_up, down } => (
            vec![stacked_transposed(name(gate_up), count, 2 * size, hidden)],
            vec![stacked_transposed(name(down), count, hidden, size)],
        ),
        ExpertWeights::Interleaved { gate_up, down } => {
            let gate_up = interleaved(name(gate_up), vec![count, hidden, 2 * size], count, size, hidden);
            (vec![gate_up], vec![stacked_transposed(name(down), count, hidden, size)])
        }
        ExpertWeights::Flat { gate, up, down } => {
            let all = |part: &str| Piece::matrix(name(part), count * size, hidden);
            let of = |part: &str, expert: usize| {
                let rows = expert * size..(expert + 1) * size;
                all(part).select(std::slice::from_ref(&rows))
            };
            let gate_up = (0..count).flat_map(|expert| [of(gate, expert), of(up, expert)]).collect();
            let transposed = stacked_transposed(name(down), count, hidden, size);
            (gate_up, vec![Piece { shape: vec![count * size, hidden], ..transposed }])
        }
    }
}

/// [`matrices`] in blocks of 4-bit floats: `[E, 2I, C]`, gate and up in turn, and `[E, C, I]`.
fn blocks(experts: &Experts, hidden: usize, prefix: &str) -> (Vec<Piece>, Vec<Piece>) {
    let (count, size) = (experts.count, experts.intermediate_size);
    let ExpertWeights::Interleaved { gate_up, down } = experts.weights else { return (Vec::new(), Vec::new()) };
    let view = |half: usize| View {
        offset: (half / 2 * 2 * size + half % 2) * hidden,
        rows: size,
        row_stride: 2 * hidden,
        col_stride: 1,
    };
    let name = |name: &str| format!("{prefix}.{name}_blocks");
    let views = (0..2 * count).map(view).collect();
    let down = Piece { shape: vec![count, hidden, size], ..Piece::matrix(name(down), count * hidden, size) };
    (vec![Piece { name: name(gate_up), shape: vec![count, 2 * size, hidden], views }], vec![down])
}

/// Biases of gate and up `[E * 2I]`, and of down `[E * C]`.
fn biases(experts: &Experts, hidden: usize, prefix: &str) -> (Vec<Piece>, Vec<Piece>) {
    let (count, size) = (experts.count, experts.intermediate_size);
    let name = |name: &str| format!("{prefix}.{name}");
    match experts.weights {
        ExpertWeights::Interleaved { gate_up, down } => {
            let gate_up = interleaved(name(&format!("{gate_up}_bias")), vec![count, 2 * size], count, size, 1);
            let down = Piece::vector(name(&format!("{down}_bias")), count * hidden);
            (vec![gate_up], vec![Piece { shape: vec![count, hidden], ..down }])
        }
        ExpertWeights::Listed { prefix, gate, up, down } => {
            let of = |expert: usize, part: &str| name(&format!("{prefix}.{expert}.{part}.bias"));
            let gate_up = (0..count).flat_map(|expert| [of(expert, gate), of(expert, up)]);
            let down = (0..count).map(|expert| Piece::vector(of(expert, down), hidden));
            (gate_up.map(|name| Piece::vector(name, size)).collect(), down.collect())
        }
        // No family has these with biases.
        _ => (Vec::new(), Vec::new()),
    }
}

/// Matrices `[rows, cols]` stored `[E, cols, rows]`.
fn stacked_transposed(name: String, count: usize, rows: usize, cols: usize) -> Piece {
    let view = |expert: usize| View { offset: expert * rows * cols, rows, row_stride: 1, col_stride: rows };
    Piece { name, shape: vec![count, cols, rows], views: (0..count).map(view).collect() }
}

/// For each expert `size` even, then as many odd ones of rows stored `[E, cols, 2 * size]`.
fn interleaved(name: String, shape: Vec<usize>, count: usize, size: usize, cols: usize) -> Piece {
    let view = |half: usize| View {
        offset: half / 2 * 2 * size * cols + half % 2,
        rows: size,
        row_stride: 2,
        col_stride: 2 * size,
    };
    Piece { name, shape, views: (0..2 * count).map(view).collect() }
}
