//! Mixture of experts, on devices that have it.

use crate::functions::devices_with;
use crate::harness::{FLOATS, Host, OnDevice, Random, assert_close, ids, unit};
use triton_trtllm::device::{
    DType, ExpertGroups, ExpertLinear, Feature, GroupScore, Route, RoutingRule, Score, Tensor, Weight,
};

/// Experts and weights of a token, by sorting.
fn chosen(logits: &[f64], bias: Option<&[f64]>, rule: RoutingRule, k: usize) -> (Vec<f64>, Vec<f64>) {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    let score = |logit: &f64| match rule.score {
        Score::Softmax => logit.exp() / sum,
        Score::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
    };
    let scores: Vec<f64> = logits.iter().map(score).collect();
    let choice: Vec<f64> = scores.iter().enumerate().map(|(i, score)| score + bias.map_or(0.0, |b| b[i])).collect();
    let sorted = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        order
    };
    let mut allowed: Vec<usize> = (0..logits.len()).collect();
    if let Some(groups) = rule.groups {
        let size = logits.len() / groups.count;
        let best = |group: &[f64]| {
            let order = sorted(group);
            match groups.score {
                GroupScore::Largest => group[order[0]],
                GroupScore::TopTwo => group[order[0]] + group[order[1]],
            }
        };
        let of_groups: Vec<f64> = choice.chunks(size).map(best).collect();
        let kept = sorted(&of_groups)[..groups.kept].to_vec();
        allowed.retain(|expert| kept.contains(&(expert / size)));
    }
    let experts: Vec<usize> = sorted(&choice).into_iter().filter(|expert| allowed.contains(expert)).take(k).collect();
    let sum: f64 = if rule.renormalize { experts.iter().map(|&expert| scores[expert]).sum() } else { 1.0 };
    let weights = experts.iter().map(|&expert| scores[expert] / sum * f64::from(rule.scale)).collect();
    (experts.into_iter().map(|expert| expert as f64).collect(), weights)
}

#[test]
fn routing_by_every_rule() {
    let mut random = Random::fresh();
    let group_rules = [
        None,
        Some(ExpertGroups { count: 4, kept: 2, score: GroupScore::Largest }),
        Some(ExpertGroups { count: 4, kept: 2, score: GroupScore::TopTwo }),
    ];
    for (name, device) in devices_with(Feature::Experts) {
        for (score, groups) in
            [Score::Softmax, Score::Sigmoid].into_iter().flat_map(|score| group_rules.map(|groups| (score, groups)))
        {
            for (renormalize, scale, biased) in [(true, 2.5, false), (false, 1.0, true)] {
                let rule = RoutingRule { score, groups, renormalize, scale };
                let logits = random.matrix(9, 16).rounded(DType::F32);
                let bias = random.matrix(1, 16).rounded(DType::F32);
                let (mut want_ids, mut want) = (Host::zeros(9, 3), Host::zeros(9, 3));
                for t in 0..9 {
                    let (experts, weights) = chosen(logits.row(t), biased.then_some(&bias.data[..]), rule, 3);
                    want_ids.row_mut(t).copy_from_slice(&experts);
                    want.row_mut(t).copy_from_slice(&weights);
                }
                let got_ids = OnDevice::poisoned(&device, 9, 3, DType::I32, 0);
                let got = OnDevice::poisoned(&device, 9, 3, DType::F32, 0);
                let bias = OnDevice::new(&device, &bias, DType::F32, 0).view;
                let logits = OnDevice::new(&device, &logits, DType::F32, 0).view;
                let choice_bias = biased.then_some(&bias);
                let (ids, weights) = (&got_ids.view, &got.view);
                device.route(&Route { ids, weights, logits: &logits, choice_bias, rule }).unwrap();
                let case = format!("{name}, seed {}: {rule:?}", random.seed);
                assert_close(&case, &got_ids.read(&device), &want_ids, |_| 0.0);
                assert_close(&case, &got.read(&device), &want, |_| 1e-5);
            }
        }
    }
}

#[test]
fn equal_scores_choose_the_lower_number() {
    for (name, device) in devices_with(Feature::Experts) {
        let logits = Host { rows: 1, cols: 6, data: vec![0.5, 1.0, 0.5, 1.0, 1.0, 0.5] };
        let logits = OnDevice::new(&device, &logits, DType::F32, 0).view;
        let ids = OnDevice::poisoned(&device, 1, 4, DType::I32, 0);
        let weights = OnDevice::poisoned(&device, 1, 4, DType::F32, 0);
        let rule = RoutingRule { score: Score::Softmax, groups: None, renormalize: true, scale: 1.0 };
        let args = Route { ids: &ids.view, weights: &weights.view, logits: &logits, choice_bias: None, rule };
        device.route(&args).unwrap();
        assert_eq!(ids.read(&device).data, [1.0, 3.0, 4.0, 0.0], "{name}");
    }
}

#[test]
fn every_row_meets_the_matrices_of_its_experts() {
    let mut random = Random::fresh();
    let (tokens, k, experts, features, cols) = (7, 2, 5, 33, 40);
    for (name, device) in devices_with(Feature::Experts) {
        for (dtype, repeated) in FLOATS.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
            let activations = device.activation_dtype(dtype);
            let x = random.matrix(if repeated { tokens } else { tokens * k }, cols).rounded(activations);
            let weight = random.matrix(experts * features, cols).rounded(dtype);
            let bias = random.matrix(experts, features).rounded(dtype);
            let chosen: Vec<i32> = (0..tokens * k).map(|_| random.below(experts) as i32).collect();
            let mut want = Host::zeros(tokens * k, features);
            for (row, &expert) in chosen.iter().enumerate() {
                let x = x.row(if repeated { row / k } else { row });
                for n in 0..features {
                    let weight = weight.row(expert as usize * features + n);
                    let dot: f64 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
                    want.row_mut(row)[n] = dot + bias.row(expert as usize)[n];
                }
            }
            let id_tensor: Tensor = ids(&device, &chosen).reshaped(tokens, k).unwrap();
            let (x, weight) = (OnDevice::new(&device, &x, activations, 3), OnDevice::new(&device, &weight, dtype, 0));
            let bias = OnDevice::new(&device, &bias, dtype, 0).view;
            let out = OnDevice::poisoned(&device, tokens * k, features, activations, 2);
            let args = ExpertLinear {
                out: &out.view,
                x: &x.view,
                weight: &Weight::Dense(weight.view.clone()),
                bias: Some(&bias),
                ids: &id_tensor,
                num_experts: experts,
            };
            device.expert_linear(&args).unwrap();
            let case = format!("{name}, seed {}: expert_linear {dtype}", random.seed);
            assert_close(&case, &out.read(&device), &want, |i| 1e-4 + want.data[i].abs() * unit(activations));
        }
    }
}

#[test]
fn combine_weighs_the_rows_of_a_token() {
    let mut random = Random::fresh();
    for (name, device) in devices_with(Feature::Experts) {
        for accumulate in [false, true] {
            let dtype = device.activation_dtype(DType::F32);
            let (x, weights) = (random.matrix(4 * 3, 19).rounded(dtype), random.matrix(4, 3).rounded(DType::F32));
            let before = random.matrix(4, 19).rounded(dtype);
            let mut want = if accumulate { before.clone() } else { Host::zeros(4, 19) };
            for t in 0..4 {
                for j in 0..3 {
                    let weight = weights.row(t)[j];
                    want.row_mut(t).iter_mut().zip(x.row(t * 3 + j)).for_each(|(to, x)| *to += weight * x);
                }
            }
            let out = OnDevice::new(&device, &before, dtype, 2);
            let x = OnDevice::new(&device, &x, dtype, 1);
            let weights = OnDevice::new(&device, &weights, DType::F32, 0);
            device.combine(&out.view, &x.view, &weights.view, accumulate).unwrap();
            let case = format!("{name}, seed {}: combine {accumulate}", random.seed);
            assert_close(&case, &out.read(&device), &want, |i| 1e-5 + want.data[i].abs() * unit(dtype));
        }
    }
}
