//! Metrics of the server's `/metrics` page.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::ptr;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use super::ffi::{c_string, check, read};
use super::sys;
use crate::error::{Error, Result, ResultExt};

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// A family of metrics: one name, one kind, one HELP text. The server takes a name once per process, so models share
/// the family of a name; it is deleted after the last metric of it.
#[derive(Clone, Debug)]
pub struct MetricFamily(Arc<FamilyUse>);

/// One series of a family.
#[derive(Debug)]
pub struct Metric {
    raw: *mut sys::TRITONSERVER_Metric,
    family: MetricFamily,
}

#[derive(Debug)]
struct FamilyUse {
    name: String,
    kind: MetricKind,
    raw: *mut sys::TRITONSERVER_MetricFamily,
}

struct Family {
    kind: MetricKind,
    raw: *mut sys::TRITONSERVER_MetricFamily,
    uses: usize,
}

/// Held while a family is made or deleted, so that a load and an unload cannot interleave.
static FAMILIES: LazyLock<Mutex<HashMap<String, Family>>> = LazyLock::new(Default::default);

// SAFETY: the server's families may be used from any thread.
unsafe impl Send for FamilyUse {}
// SAFETY: as for Send.
unsafe impl Sync for FamilyUse {}
// SAFETY: as for `FamilyUse`.
unsafe impl Send for Family {}
// SAFETY: the server's metrics are atomics behind the handle and may be used from any thread.
unsafe impl Send for Metric {}
// SAFETY: as for Send.
unsafe impl Sync for Metric {}

impl MetricFamily {
    /// The family called `name`, made if no model has it yet.
    ///
    /// # Errors
    /// The name is taken by another kind, or the server refuses it.
    pub fn shared(kind: MetricKind, name: &str, help: &str) -> Result<Self> {
        let mut families = FAMILIES.lock();
        let family = match families.entry(name.to_owned()) {
            Entry::Occupied(family) => family.into_mut(),
            Entry::Vacant(place) => place.insert(Family { kind, raw: new_family(kind, name, help)?, uses: 0 }),
        };
        if family.kind != kind {
            return Err(Error::invalid(format!("metric family `{name}` is a {:?}, not a {kind:?}", family.kind)));
        }
        family.uses += 1;
        Ok(Self(Arc::new(FamilyUse { name: name.to_owned(), kind, raw: family.raw })))
    }

    /// The series with these labels.
    ///
    /// # Errors
    /// The family is a histogram, or the server refuses the labels.
    pub fn metric(&self, labels: &[(&str, &str)]) -> Result<Metric> {
        if self.0.kind == MetricKind::Histogram {
            return Err(Error::internal(format!("metric family `{}` needs bucket bounds", self.0.name)));
        }
        let labels = Labels::new(labels);
        // SAFETY: the family is alive; the labels are copied.
        let raw = unsafe {
            read(ptr::null_mut(), |out| {
                sys::TRITONSERVER_MetricNew(out, self.0.raw, labels.as_ptr(), labels.0.len() as u64)
            })
        };
        let raw = raw.context(format_args!("metric family `{}`", self.0.name))?;
        Ok(Metric { raw, family: self.clone() })
    }

    /// The histogram with these labels and upper bucket bounds, ascending; `+Inf` is added by the server.
    ///
    /// # Errors
    /// Unsupported on servers before 24.08, which have no histograms; the family is of another kind; or the server
    /// refuses the labels or bounds.
    pub fn histogram(&self, labels: &[(&str, &str)], bounds: &[f64]) -> Result<Metric> {
        if self.0.kind != MetricKind::Histogram {
            return Err(Error::internal(format!("metric family `{}` is a {:?}", self.0.name, self.0.kind)));
        }
        let labels = Labels::new(labels);
        let raw = HistogramApi::find().and_then(|api| api.make(self.0.raw, &labels, bounds));
        let raw = raw.context(format_args!("metric family `{}`", self.0.name))?;
        Ok(Metric { raw, family: self.clone() })
    }
}

impl Metric {
    /// Adds to a counter (`value` ≥ 0) or a gauge.
    ///
    /// # Errors
    /// The metric is a histogram, or a counter would go down.
    pub fn increment(&self, value: f64) -> Result<()> {
        // SAFETY: the metric is alive.
        unsafe { check(sys::TRITONSERVER_MetricIncrement(self.raw, value)) }
    }

    /// Sets a gauge.
    ///
    /// # Errors
    /// The metric is no gauge.
    pub fn set(&self, value: f64) -> Result<()> {
        // SAFETY: the metric is alive.
        unsafe { check(sys::TRITONSERVER_MetricSet(self.raw, value)) }
    }

    /// Adds an observation to a histogram.
    ///
    /// # Errors
    /// The metric is no histogram.
    pub fn observe(&self, value: f64) -> Result<()> {
        if self.family.0.kind != MetricKind::Histogram {
            return Err(Error::internal(format!("metric family `{}` is no histogram", self.family.0.name)));
        }
        // SAFETY: the metric is alive.
        unsafe { check((HistogramApi::find()?.observe)(self.raw, value)) }
    }
}

impl Drop for Metric {
    fn drop(&mut self) {
        // SAFETY: ours and deleted only here, before the family, which `self` holds.
        if let Err(error) = unsafe { check(sys::TRITONSERVER_MetricDelete(self.raw)) } {
            tracing::error!("deleting a metric of `{}`: {error}", self.family.0.name);
        }
    }
}

impl Drop for FamilyUse {
    fn drop(&mut self) {
        let mut families = FAMILIES.lock();
        let Entry::Occupied(mut family) = families.entry(std::mem::take(&mut self.name)) else { return };
        family.get_mut().uses -= 1;
        if family.get().uses > 0 {
            return;
        }
        let (name, family) = family.remove_entry();
        // SAFETY: ours and deleted only here; every metric of it holds a use and is gone.
        if let Err(error) = unsafe { check(sys::TRITONSERVER_MetricFamilyDelete(family.raw)) } {
            tracing::error!("deleting metric family `{name}`: {error}");
        }
    }
}

fn new_family(kind: MetricKind, name: &str, help: &str) -> Result<*mut sys::TRITONSERVER_MetricFamily> {
    let code = match kind {
        MetricKind::Counter => sys::TRITONSERVER_METRIC_KIND_COUNTER,
        MetricKind::Gauge => sys::TRITONSERVER_METRIC_KIND_GAUGE,
        MetricKind::Histogram => sys::TRITONSERVER_METRIC_KIND_HISTOGRAM,
    };
    let (c_name, help) = (c_string(name), c_string(help));
    // SAFETY: name and help are copied; the family written is ours.
    let family = unsafe {
        read(ptr::null_mut(), |out| sys::TRITONSERVER_MetricFamilyNew(out, code, c_name.as_ptr(), help.as_ptr()))
    };
    family.context(format_args!("metric family `{name}`"))
}

/// The labels of a metric; ours, for the time of the call that copies them.
struct Labels(Vec<*mut sys::TRITONSERVER_Parameter>);

impl Labels {
    fn new(labels: &[(&str, &str)]) -> Self {
        let make = |&(name, value): &(&str, &str)| {
            let (name, value) = (c_string(name), c_string(value));
            // SAFETY: name and value are copied; the parameter is ours.
            unsafe {
                sys::TRITONSERVER_ParameterNew(name.as_ptr(), sys::TRITONSERVER_PARAMETER_STRING, value.as_ptr().cast())
            }
        };
        Self(labels.iter().map(make).collect())
    }

    fn as_ptr(&self) -> *mut *const sys::TRITONSERVER_Parameter {
        self.0.as_ptr().cast_mut().cast()
    }
}

impl Drop for Labels {
    fn drop(&mut self) {
        for &label in &self.0 {
            // SAFETY: ours and deleted only here.
            unsafe { sys::TRITONSERVER_ParameterDelete(label) };
        }
    }
}

/// The functions of histograms, which servers before 24.08 lack. An undefined symbol would keep the whole library from
/// loading there.
struct HistogramApi {
    args_new: unsafe extern "C" fn(*mut *mut sys::TRITONSERVER_MetricArgs) -> *mut sys::TRITONSERVER_Error,
    args_delete: unsafe extern "C" fn(*mut sys::TRITONSERVER_MetricArgs) -> *mut sys::TRITONSERVER_Error,
    args_set_histogram:
        unsafe extern "C" fn(*mut sys::TRITONSERVER_MetricArgs, *const f64, u64) -> *mut sys::TRITONSERVER_Error,
    new_with_args: unsafe extern "C" fn(
        *mut *mut sys::TRITONSERVER_Metric,
        *mut sys::TRITONSERVER_MetricFamily,
        *mut *const sys::TRITONSERVER_Parameter,
        u64,
        *const sys::TRITONSERVER_MetricArgs,
    ) -> *mut sys::TRITONSERVER_Error,
    observe: unsafe extern "C" fn(*mut sys::TRITONSERVER_Metric, f64) -> *mut sys::TRITONSERVER_Error,
}

impl HistogramApi {
    fn find() -> Result<&'static Self> {
        static API: LazyLock<Option<HistogramApi>> = LazyLock::new(HistogramApi::look_up);
        API.as_ref().ok_or_else(|| Error::unsupported("this server has no histogram metrics (24.08 and newer do)"))
    }

    fn look_up() -> Option<Self> {
        // SAFETY: each symbol has the type that `triton_headers/tritonserver.h` declares for its name, and the server
        // library stays loaded as long as this one.
        unsafe {
            Some(Self {
                args_new: symbol(c"TRITONSERVER_MetricArgsNew")?,
                args_delete: symbol(c"TRITONSERVER_MetricArgsDelete")?,
                args_set_histogram: symbol(c"TRITONSERVER_MetricArgsSetHistogram")?,
                new_with_args: symbol(c"TRITONSERVER_MetricNewWithArgs")?,
                observe: symbol(c"TRITONSERVER_MetricObserve")?,
            })
        }
    }

    fn make(
        &self,
        family: *mut sys::TRITONSERVER_MetricFamily,
        labels: &Labels,
        bounds: &[f64],
    ) -> Result<*mut sys::TRITONSERVER_Metric> {
        // SAFETY: the family is alive; labels, bounds and args are copied; the args are ours and deleted here.
        unsafe {
            let args = read(ptr::null_mut(), |out| (self.args_new)(out))?;
            let metric = check((self.args_set_histogram)(args, bounds.as_ptr(), bounds.len() as u64)).and_then(|()| {
                read(ptr::null_mut(), |out| {
                    (self.new_with_args)(out, family, labels.as_ptr(), labels.0.len() as u64, args)
                })
            });
            check((self.args_delete)(args))?;
            metric
        }
    }
}

/// Looks `name` up in the whole process.
///
/// # Safety
/// `F` is the function pointer type of the symbol.
unsafe fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the name is NUL-terminated.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert_eq!(size_of::<F>(), size_of_val(&address));
    // SAFETY: the caller's premise; sizes are equal.
    (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
}
