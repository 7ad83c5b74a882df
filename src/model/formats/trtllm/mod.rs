//! TensorRT-LLM checkpoints: `config.json` with `architecture`, and one safetensors file for each rank.

mod config;
mod engine;
mod layout;

pub use self::engine::{EngineFolder, EngineLimits};
pub(super) use self::engine::{MANAGED, Searched};

use self::layout::{BARE, LAST_STAGE, Layout, MODEL_RULES, Split};
use super::{SafetensorsFolder, StoredTensor, TensorStore};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::Section;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// The experts' name, and those of up, gate and down of each.
const EXPERTS: &str = "mlp.experts";
const EXPERT_PARTS: [&str; 3] = ["up_proj", "gate_proj", "down_proj"];
/// Number of the last of an expert's matrices.
const DOWN: usize = 2;
/// A mode of older files.
const EXPERT_PARALLEL: usize = 1;
/// Ranks of one model, at most: a bound for absurd numbers.
const MAX_RANKS: usize = 4096;

/// The merged tensors of all ranks.
#[derive(Debug)]
pub struct TrtllmCheckpoint {
    /// Rank files, those of a pipeline stage behind each other.
    ranks: Vec<SafetensorsFolder>,
    layout: &'static Layout,
    sizes: Sizes,
    names: BTreeSet<String>,
}

/// Numbers of `config.json` that decide how tensors are cut.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    tp: usize,
    pp: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    vocab_size: usize,
    /// `None`: every rank has the whole embedding; else the dimension that is cut.
    embedding_split: Option<usize>,
    num_experts: usize,
    /// Groups of ranks that share the experts; those of a group hold parts of the same ones.
    expert_groups: usize,
    latent: LatentSizes,
}

/// Sizes of compressed queries, keys and values; 0 where there are none.
#[derive(Clone, Copy, Debug, Default)]
struct LatentSizes {
    query_rank: usize,
    plain_dim: usize,
    value_dim: usize,
}

/// Where one matrix of an expert is.
struct ExpertPlace {
    name: String,
    stage: usize,
    expert: usize,
    /// Up, gate or down.
    part: usize,
}

impl TrtllmCheckpoint {
    /// Maps the files of all ranks, `rank{r}{suffix}.safetensors`. Returns the configuration in the words of the
    /// Hugging Face folder.
    ///
    /// # Errors
    /// One sentence that names the file or key and what is wrong with it.
    pub fn open(folder: &Path, config: &Section, suffix: &str) -> Result<(Self, Section)> {
        let layout = Layout::detect(config)?;
        config::refuse_quantisation(config)?;
        let sizes = Sizes::read(config)?;
        let files: Vec<_> =
            (0..sizes.tp * sizes.pp).map(|rank| folder.join(format!("rank{rank}{suffix}.safetensors"))).collect();
        let missing: Vec<_> = files
            .iter()
            .filter(|file| !file.exists())
            .filter_map(|file| Some(file.file_name()?.to_string_lossy()))
            .collect();
        if !missing.is_empty() {
            return Err(Error::invalid(format!(
                "{} says tp_size {} and pp_size {}, but these files are not there: {}",
                config.origin(),
                sizes.tp,
                sizes.pp,
                missing.join(", ")
            )));
        }
        let ranks = files
            .iter()
            .map(|file| Ok(SafetensorsFolder::open_file(file)?.renamed(&BARE)))
            .collect::<Result<Vec<_>>>()?;
        let mut checkpoint = Self { ranks, layout, sizes, names: BTreeSet::new() };
        checkpoint.names = checkpoint.folder_names();
        let traits = checkpoint.traits()?;
        let folder_config = config::folder_config(config, layout, &traits)?;
        Ok((checkpoint, folder_config))
    }

    /// "tp 2, pp 1"
    pub fn parallelism(&self) -> String {
        format!("tp {}, pp {}", self.sizes.tp, self.sizes.pp)
    }

    /// The rank files of one pipeline stage.
    fn stage(&self, stage: usize) -> &[SafetensorsFolder] {
        &self.ranks[stage * self.sizes.tp..(stage + 1) * self.sizes.tp]
    }

    /// What the tensors say of the configuration.
    fn traits(&self) -> Result<config::Traits> {
        let has = |name: &str| self.names.contains(name);
        let rows_of = |name: &str| Ok::<_, Error>(self.tensor(name)?.and_then(|tensor| tensor.shape.first().copied()));
        let with_experts = |layer: &usize| has(&format!("model.layers.{layer}.mlp.gate.weight"));
        let expert = (0..self.sizes.num_layers).find(with_experts);
        let expert = expert.map(|layer| format!("model.layers.{layer}.{EXPERTS}.0.up_proj.weight"));
        Ok(config::Traits {
            has_head: has("lm_head.weight"),
            has_attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
            has_mlp_bias: has("model.layers.0.mlp.up_proj.bias"),
            has_mlp_norm: has("model.layers.0.post_attention_layernorm.weight"),
            positions: rows_of("model.embed_positions.weight")?,
            expert_size: expert.map(|name| rows_of(&name)).transpose()?.flatten(),
            dense_layers: (0..self.sizes.num_layers).filter(|layer| !with_experts(layer)).collect(),
        })
    }

    /// How a tensor of the folder is shared, its name in the rank files and its pipeline stage: all places where it may
    /// be.
    fn places(&self, name: &str) -> Vec<(Split, String, usize)> {
        let Some((stem, suffix)) = name.rsplit_once('.') else { return Vec::new() };
        let in_layer = stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = in_layer else {
            let stage = if LAST_STAGE.contains(&stem) { self.sizes.pp - 1 } else { 0 };
            let rules = MODEL_RULES.iter().filter(|rule| rule.0 == stem);
            return rules.map(|(_, rank_name, split)| (*split, format!("{rank_name}.{suffix}"), stage)).collect();
        };
        let Some((stage, layer)) = layer.parse().ok().and_then(|layer| self.sizes.stage_of(layer)) else {
            return Vec::new();
        };
        let rules = self.layout.layer_rules().filter(|rule| rule.0 == part && self.applies(rule));
        let place = |rule: &layout::Rule| (rule.2, format!("transformer.layers.{layer}.{}.{suffix}", rule.1), stage);
        rules.map(place).collect()
    }

    fn expert_place(&self, name: &str) -> Option<ExpertPlace> {
        let (layer, rest) = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?.split_once('.')?;
        let (expert, part) = rest.strip_prefix(EXPERTS)?.strip_prefix('.')?.split_once('.')?;
        let part = EXPERT_PARTS.iter().position(|known| *known == part)?;
        let (stage, layer) = self.sizes.stage_of(layer.parse().ok()?)?;
        let expert = expert.parse().ok().filter(|&expert: &usize| expert < self.sizes.num_experts)?;
        let stored = if part == DOWN { "proj" } else { "fc" };
        Some(ExpertPlace { name: format!("transformer.layers.{layer}.mlp.{stored}.weight"), stage, expert, part })
    }

    /// Up and gate of an expert lie below each other in each rank's part of the first matrix.
    fn expert(&self, place: &ExpertPlace) -> Result<Option<StoredTensor<'_>>> {
        let Sizes { num_experts, expert_groups, .. } = self.sizes;
        let of_group = num_experts / expert_groups;
        let (group, local) = (place.expert / of_group, place.expert % of_group);
        let mut parts = Vec::new();
        for rank in self.stage(place.stage).iter().skip(group).step_by(expert_groups) {
            let Some(all) = rank.tensor(&place.name)? else { return Ok(None) };
            if all.shape.len() != 3 || all.shape[0] != of_group {
                return Err(Error::invalid(format!(
                    "{}: {} has shape {:?}; it must hold matrices of {of_group} experts",
                    all.file.display(),
                    place.name,
                    all.shape
                )));
            }
            let mut one = all.slice(local..local + 1)?;
            one.shape.remove(0);
            let half = one.shape[0] / 2;
            parts.push(if place.part == DOWN { one } else { one.slice(place.part * half..(place.part + 1) * half)? });
        }
        let whole = if place.part == DOWN { StoredTensor::concat_columns(parts) } else { StoredTensor::stack(parts) };
        whole.map(Some)
    }

    /// The folder's names of all tensors; those that nobody knows keep their own.
    fn folder_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for stage in 0..self.sizes.pp {
            for name in self.stage(stage).iter().flat_map(|rank| TensorStore::names(rank)) {
                let known = self.folder_names_of(stage, name);
                if known.is_empty() {
                    names.insert(name.to_owned());
                }
                names.extend(known);
            }
        }
        names
    }

    fn folder_names_of(&self, stage: usize, name: &str) -> Vec<String> {
        let Some((stem, suffix)) = name.rsplit_once('.') else { return Vec::new() };
        let in_layer = stem.strip_prefix("transformer.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = in_layer.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, part))) else {
            let rules = MODEL_RULES.iter().filter(|rule| rule.1 == stem);
            return rules.map(|rule| format!("{}.{suffix}", rule.0)).collect();
        };
        let prefix = format!("model.layers.{}.", self.sizes.first_layer(stage).saturating_add(layer));
        if matches!(part, "mlp.fc" | "mlp.proj") && self.has_router(stage, layer) {
            let parts = if part == "mlp.fc" { &EXPERT_PARTS[..DOWN] } else { &EXPERT_PARTS[DOWN..] };
            let name = |expert: usize, part: &str| format!("{prefix}{EXPERTS}.{expert}.{part}.{suffix}");
            let of_expert = |expert| parts.iter().map(move |part| name(expert, part));
            return (0..self.sizes.num_experts).flat_map(of_expert).collect();
        }
        let rules = self.layout.rules_of(part).into_iter().filter(|rule| self.applies(rule));
        rules.map(|rule| format!("{prefix}{}.{suffix}", rule.0)).collect()
    }

    /// Whether the model has what the rule is about.
    fn applies(&self, rule: &layout::Rule) -> bool {
        match rule.2 {
            Split::QueryDown | Split::QueryUp => self.sizes.latent.query_rank > 0,
            Split::QueryWhole => self.sizes.latent.query_rank == 0,
            _ => true,
        }
    }

    /// Whether a layer of a pipeline stage has experts.
    fn has_router(&self, stage: usize, layer: usize) -> bool {
        let router = format!("transformer.layers.{layer}.mlp.router.weight");
        self.sizes.num_experts > 0 && self.stage(stage).iter().any(|rank| rank.contains(&router))
    }

    /// The tensor `rank_name` of all ranks of a stage.
    fn shared(&self, split: Split, rank_name: &str, stage: usize) -> Result<Option<StoredTensor<'_>>> {
        let mut parts = Vec::new();
        for rank in self.stage(stage) {
            match rank.tensor(rank_name)? {
                Some(part) if !part.shape.is_empty() => parts.push(part),
                Some(part) => return Err(Error::invalid(format!("{}: {rank_name} is no matrix", part.file.display()))),
                None => {}
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        if parts.len() != self.sizes.tp {
            return Err(Error::invalid(format!(
                "{}: only {} of {} ranks have {rank_name}",
                parts[0].file.display(),
                parts.len(),
                self.sizes.tp
            )));
        }
        let beside = rank_name.replace(".fc.", ".gate.");
        let is_apart = split == Split::Gate && self.stage(stage)[0].contains(&beside);
        self.merge(if is_apart { Split::Rows } else { split }, parts).map(Some)
    }

    fn merge<'a>(&'a self, split: Split, parts: Vec<StoredTensor<'a>>) -> Result<StoredTensor<'a>> {
        let is_vector = parts[0].shape.len() == 1;
        match split {
            Split::Replicated => first(parts),
            Split::Columns if is_vector => first(parts),
            Split::Rows | Split::QueryUp | Split::QueryWhole => StoredTensor::stack(parts),
            Split::QueryDown => first(parts)?.slice(0..self.sizes.latent.query_rank),
            Split::KeyDown => {
                let all = first(parts)?;
                all.slice(self.sizes.latent.query_rank..all.shape[0])
            }
            Split::KeyValueUp => self.key_values(parts),
            Split::Gate => self.half(parts, 1),
            Split::AboveGate => self.half(parts, 0),
            Split::QueryNorm | Split::KeyNorm => {
                let heads = if split == Split::QueryNorm { self.sizes.num_heads } else { self.sizes.num_kv_heads };
                if is_vector || parts[0].shape[0] >= heads { first(parts) } else { StoredTensor::stack(parts) }
            }
            Split::Columns => StoredTensor::concat_columns(parts),
            Split::Query | Split::Key | Split::Value => self.heads(split, parts),
            Split::Head => self.without_padding(StoredTensor::stack(parts)?),
            Split::Embedding => {
                let whole = match self.sizes.embedding_split {
                    None => first(parts)?,
                    Some(0) => StoredTensor::stack(parts)?,
                    Some(_) => StoredTensor::concat_columns(parts)?,
                };
                self.without_padding(whole)
            }
        }
    }

    /// The upper (0) or lower half of each rank's rows.
    fn half<'a>(&self, parts: Vec<StoredTensor<'a>>, half: usize) -> Result<StoredTensor<'a>> {
        let halves = parts.into_iter().map(|part| {
            let rows = part.shape[0] / 2;
            part.slice(half * rows..(half + 1) * rows)
        });
        StoredTensor::stack(halves.collect::<Result<_>>()?)
    }

    /// The queries, keys or values out of each rank's fused projection.
    fn heads<'a>(&self, split: Split, parts: Vec<StoredTensor<'a>>) -> Result<StoredTensor<'a>> {
        let Sizes { tp, num_heads, num_kv_heads, .. } = self.sizes;
        let (queries, kv) = (num_heads / tp, num_kv_heads.div_ceil(tp));
        // With fewer key heads than ranks, several ranks hold copies of one.
        let copies = (tp / num_kv_heads).max(1);
        let slices = parts.into_iter().enumerate().filter(|(rank, _)| split == Split::Query || rank % copies == 0);
        let slices = slices.map(|(_, part)| {
            let rows = part.shape[0];
            if !rows.is_multiple_of(queries + 2 * kv) {
                return Err(Error::invalid(format!(
                    "{}: a fused projection has {rows} rows, which are no multiple of {queries} query and 2 x {kv} \
                     key and value heads",
                    part.file.display()
                )));
            }
            let head_dim = rows / (queries + 2 * kv);
            let heads = match split {
                Split::Query => 0..queries,
                Split::Key => queries..queries + kv,
                _ => queries + kv..queries + 2 * kv,
            };
            part.slice(heads.start * head_dim..heads.end * head_dim)
        });
        StoredTensor::stack(slices.collect::<Result<_>>()?)
    }

    /// The key and the value of every head, one behind the other.
    fn key_values<'a>(&self, parts: Vec<StoredTensor<'a>>) -> Result<StoredTensor<'a>> {
        let LatentSizes { plain_dim, value_dim, .. } = self.sizes.latent;
        let heads = self.sizes.num_heads / self.sizes.tp;
        let mut slices = Vec::new();
        for part in parts {
            if part.shape[0] != heads * (plain_dim + value_dim) {
                return Err(Error::invalid(format!(
                    "{}: kv_b_proj has {} rows; {heads} heads with keys of {plain_dim} and values of {value_dim} ask for {}",
                    part.file.display(),
                    part.shape[0],
                    heads * (plain_dim + value_dim)
                )));
            }
            for head in 0..heads {
                let value = heads * plain_dim + head * value_dim;
                slices.push(part.slice(head * plain_dim..(head + 1) * plain_dim)?);
                slices.push(part.slice(value..value + value_dim)?);
            }
        }
        StoredTensor::stack(slices)
    }

    fn without_padding<'a>(&self, whole: StoredTensor<'a>) -> Result<StoredTensor<'a>> {
        match whole.shape.first() {
            Some(&rows) if rows > self.sizes.vocab_size => whole.slice(0..self.sizes.vocab_size),
            _ => Ok(whole),
        }
    }
}

impl TensorStore for TrtllmCheckpoint {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>> {
        if let Some(place) = self.expert_place(name) {
            return self.expert(&place);
        }
        for (split, rank_name, stage) in self.places(name) {
            if let Some(tensor) = self.shared(split, &rank_name, stage)? {
                return Ok(Some(tensor));
            }
        }
        Ok(None)
    }

    fn main_dtype(&self) -> Option<DType> {
        self.ranks.first()?.main_dtype()
    }
}

fn first(parts: Vec<StoredTensor<'_>>) -> Result<StoredTensor<'_>> {
    parts.into_iter().next().ok_or_else(|| Error::internal("a tensor of no ranks"))
}

impl Sizes {
    fn read(config: &Section) -> Result<Self> {
        let mapping = match config.section("mapping")? {
            Some(mapping) => mapping,
            None => Section::from_value(config.origin(), json!({}))?,
        };
        let ways = |key| Ok::<_, Error>(mapping.count(&[key], MAX_RANKS)?.unwrap_or(1));
        let (tp, pp) = (ways("tp_size")?, ways("pp_size")?);
        let num_layers = config.required_count(&["num_hidden_layers"], 4096)?;
        let num_heads = config.required_count(&["num_attention_heads"], 1 << 16)?;
        let num_kv_heads = config.count(&["num_key_value_heads"], 1 << 16)?.unwrap_or(num_heads);
        let bad = |what: String| Err(Error::invalid(format!("{}: {what}", config.origin())));
        if tp * pp > MAX_RANKS || pp > num_layers {
            return bad(format!("tp_size {tp} and pp_size {pp} do not fit {num_layers} layers and {MAX_RANKS} ranks"));
        }
        if !num_heads.is_multiple_of(tp) {
            return bad(format!("num_attention_heads is {num_heads}; it must be a multiple of tp_size, {tp}"));
        }
        if !num_kv_heads.is_multiple_of(tp) && !tp.is_multiple_of(num_kv_heads) {
            return bad(format!("num_key_value_heads is {num_kv_heads}; it and tp_size, {tp}, must divide each other"));
        }
        if let Some((key, value)) = mapping.first(&["auto_parallel"]).filter(|(_, value)| *value == &Value::Bool(true))
        {
            return Err(Error::unsupported(format!("{}: {key} is {value}, which is not supported", mapping.origin())));
        }
        let embedding_split = match config.flag("use_parallel_embedding", false)? && tp > 1 {
            true => Some(config.index(&["embedding_sharding_dim"])?.unwrap_or(0)),
            false => None,
        };
        let vocab_size = config.required_count(&["vocab_size"], 1 << 26)?;
        let num_experts = layout::num_experts(config)?.min(1 << 16);
        let expert_groups = expert_groups(config, &mapping, tp)?;
        if !tp.is_multiple_of(expert_groups) || !num_experts.is_multiple_of(expert_groups) {
            return bad(format!(
                "moe_ep_size is {expert_groups}; it must divide tp_size, {tp}, and the number of experts, {num_experts}"
            ));
        }
        Ok(Self {
            tp,
            pp,
            num_layers,
            num_heads,
            num_kv_heads,
            vocab_size,
            embedding_split,
            num_experts,
            expert_groups,
            latent: LatentSizes::read(config)?,
        })
    }

    /// The first layer of a pipeline stage: the first stages have one more where layers do not divide evenly.
    fn first_layer(&self, stage: usize) -> usize {
        stage * (self.num_layers / self.pp) + stage.min(self.num_layers % self.pp)
    }

    /// Pipeline stage of a layer, and its number there.
    fn stage_of(&self, layer: usize) -> Option<(usize, usize)> {
        let stage = (0..self.pp).rev().find(|&stage| self.first_layer(stage) <= layer)?;
        (layer < self.num_layers).then(|| (stage, layer - self.first_layer(stage)))
    }
}

impl LatentSizes {
    fn read(config: &Section) -> Result<Self> {
        if config.first(&["kv_lora_rank"]).is_none() {
            return Ok(Self::default());
        }
        Ok(Self {
            query_rank: config.count(&["q_lora_rank"], 1 << 20)?.unwrap_or(0),
            plain_dim: config.required_count(&["qk_nope_head_dim"], 1 << 16)?,
            value_dim: config.required_count(&["v_head_dim"], 1 << 16)?,
        })
    }
}

/// `moe_ep_size`; before it, a mode that gave every rank experts of its own.
fn expert_groups(config: &Section, mapping: &Section, tp: usize) -> Result<usize> {
    // -1 is written for what is not set.
    let written = mapping.first(&["moe_ep_size"]).filter(|(_, value)| value.as_i64() != Some(-1));
    if written.is_some() {
        return Ok(mapping.count(&["moe_ep_size"], MAX_RANKS)?.unwrap_or(1));
    }
    let mode = match config.section("moe")? {
        Some(moe) => moe.index(&["tp_mode"])?,
        None => config.index(&["moe_tp_mode"])?,
    };
    Ok(if mode == Some(EXPERT_PARALLEL) { tp } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stages_have_the_layers_that_are_left_over() {
        let config = json!({"num_hidden_layers": 7, "num_attention_heads": 8, "vocab_size": 9, "mapping":
            {"tp_size": 2, "pp_size": 3}});
        let sizes = Sizes::read(&Section::from_value("config.json", config).unwrap()).unwrap();
        let places: Vec<_> = (0..8).map(|layer| sizes.stage_of(layer)).collect();
        let expected = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)].map(Some);
        assert_eq!(places[..7], expected);
        assert_eq!(places[7], None);
    }
}
