//! What the parameters of a request, as opposed to its tensors, say: when it runs, beside whom, and what it shares.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::TenantWeights;
use crate::engine::{self, Tenant};
use crate::error::{Error, Result};
use crate::triton::ParameterValue;

/// Rules for request parameters that do not change from request to request.
#[derive(Clone, Debug, Default)]
pub struct TermRules {
    pub tenant_weights: TenantWeights,
    /// `dynamic_batching.default_priority_level`; 1 is the highest.
    pub default_priority_level: Option<i64>,
    /// `dynamic_batching.default_queue_policy.default_timeout_microseconds`, unless late requests are to be delayed: the
    /// longest wait before a request starts. 0: any.
    pub queue_timeout_us: u64,
}

/// The request parameters that [`Terms::read`] reads.
pub const TERMS: [&str; 5] = ["request_type", "priority", "timeout", "tenant", "cache_salt"];

/// The terms of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    priority: i32,
    /// 0: the client gave none.
    timeout_us: u64,
    queue_timeout_us: u64,
    tenant: Tenant,
    cache_salt: u64,
}

impl Terms {
    /// Reads [`TERMS`]; other parameters are none of ours.
    /// `timeout_us` is what the server's API says; the generate endpoint passes it as a parameter instead.
    ///
    /// # Errors
    /// `InvalidArg` for a value of another type or outside its range; `Unsupported` for one half of a disaggregated
    /// request.
    pub fn read(rules: &TermRules, parameters: &BTreeMap<String, ParameterValue>, timeout_us: u64) -> Result<Self> {
        check_request_type(parameters)?;
        let level =
            |value: Option<u64>| value.filter(|&level| level > 0).map(|level| level.min(i32::MAX as u64) as i64);
        let default_level = rules.default_priority_level.filter(|&level| level > 0).unwrap_or(1);
        let given_level = level(whole(parameters, "priority")?).unwrap_or(default_level);
        let tenant = match text(parameters, "tenant")? {
            Some(name) => Tenant { id: identity(&name), weight: rules.tenant_weights.of(&name) },
            None => Tenant::default(),
        };
        Ok(Self {
            priority: (default_level - given_level).clamp(i32::MIN.into(), i32::MAX.into()) as i32,
            timeout_us: if timeout_us > 0 { timeout_us } else { whole(parameters, "timeout")?.unwrap_or(0) },
            queue_timeout_us: rules.queue_timeout_us,
            tenant,
            cache_salt: text(parameters, "cache_salt")?.map_or(0, |salt| identity(&salt)),
        })
    }

    /// Puts the terms into a request that arrives now.
    pub fn apply(&self, request: &mut engine::Request, now_ns: u64) {
        (request.priority, request.tenant, request.cache_salt) = (self.priority, self.tenant, self.cache_salt);
        let after = |us: u64| (us > 0).then(|| now_ns.saturating_add(us.saturating_mul(1000)));
        (request.deadline_ns, request.start_by_ns) = (after(self.timeout_us), after(self.queue_timeout_us));
    }
}

/// A number for a text; 0 only for the empty one.
fn identity(text: &str) -> u64 {
    if text.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish().max(1)
}

fn whole(parameters: &BTreeMap<String, ParameterValue>, name: &str) -> Result<Option<u64>> {
    let value = match parameters.get(name) {
        None => return Ok(None),
        Some(ParameterValue::Int(value)) => u64::try_from(*value).ok(),
        Some(ParameterValue::Text(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    let wrong = || Error::invalid(format!("request parameter {name} is not a whole number of 0 or more"));
    value.map(Some).ok_or_else(wrong)
}

fn text(parameters: &BTreeMap<String, ParameterValue>, name: &str) -> Result<Option<String>> {
    match parameters.get(name) {
        None => Ok(None),
        Some(ParameterValue::Text(text)) => Ok(Some(text.clone())),
        Some(ParameterValue::Int(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(Error::invalid(format!("request parameter {name} is neither a text nor a whole number"))),
    }
}

/// Another word than the three counts as none, another type too.
fn check_request_type(parameters: &BTreeMap<String, ParameterValue>) -> Result<()> {
    match parameters.get("request_type") {
        Some(ParameterValue::Text(text)) => match text.as_str() {
            "context_and_generation" => Ok(()),
            "context_only" | "generation_only" => {
                Err(Error::unsupported(format!("request_type {text} is not supported by this version")))
            }
            _ => {
                tracing::error!(
                    "request_type is {text:?}, expected context_and_generation, context_only or generation_only: \
                     taken as context_and_generation"
                );
                Ok(())
            }
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(rules: &TermRules, pairs: &[(&str, ParameterValue)], timeout_us: u64) -> Result<Terms> {
        let parameters = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Terms::read(rules, &parameters, timeout_us)
    }

    #[test]
    fn level_1_is_the_highest_priority_and_0_the_default() {
        let of = |default_priority_level, level: i64| {
            let rules = TermRules { default_priority_level, ..TermRules::default() };
            terms(&rules, &[("priority", ParameterValue::Int(level))], 0).unwrap().priority
        };
        assert_eq!([of(None, 0), of(None, 1), of(None, 4)], [0, 0, -3]);
        assert_eq!([of(Some(3), 0), of(Some(3), 1), of(Some(3), 3), of(Some(3), 5)], [0, 2, 0, -2]);
        assert_eq!(of(None, i64::MAX), -(i32::MAX - 1));
    }

    #[test]
    fn the_timeout_of_the_api_wins_over_the_parameter() {
        let deadline = |timeout_us, parameter: Option<i64>| {
            let pairs: Vec<_> = parameter.map(|value| ("timeout", ParameterValue::Int(value))).into_iter().collect();
            let mut request = engine::Request::default();
            terms(&TermRules::default(), &pairs, timeout_us).unwrap().apply(&mut request, 7);
            request.deadline_ns
        };
        assert_eq!(deadline(0, None), None);
        assert_eq!(deadline(0, Some(0)), None);
        assert_eq!(deadline(0, Some(2)), Some(2007));
        assert_eq!(deadline(1, Some(2)), Some(1007));
    }

    #[test]
    fn tenants_and_salts_are_told_apart_by_their_text() {
        let rules = TermRules { tenant_weights: TenantWeights(vec![("a".into(), 4)]), ..TermRules::default() };
        let of = |name: &str| {
            let value = ParameterValue::Text(name.into());
            terms(&rules, &[("tenant", value.clone()), ("cache_salt", value)], 0).unwrap()
        };
        assert_eq!([of("a").tenant.weight, of("b").tenant.weight], [4, 1]);
        assert_ne!(of("a").tenant.id, of("b").tenant.id);
        assert_ne!(of("a").cache_salt, of("b").cache_salt);
        assert_eq!(of("a").cache_salt, of("a").cache_salt);
        assert_eq!(of(""), Terms::default());
    }

    #[test]
    fn values_of_another_type_are_refused_by_name() {
        for (name, value) in [
            ("priority", ParameterValue::Int(-1)),
            ("priority", ParameterValue::Bool(true)),
            ("timeout", ParameterValue::Text("soon".into())),
            ("tenant", ParameterValue::Double(0.5)),
            ("cache_salt", ParameterValue::Bool(true)),
        ] {
            let error = terms(&TermRules::default(), &[(name, value)], 0).unwrap_err();
            assert!(error.message().contains(name), "{error}");
        }
    }
}
