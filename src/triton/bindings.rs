// Made by bindgen from triton_headers/ (see build/bindings.rs). Do not edit.

#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_BufferAttributes {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_Error {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_InferenceRequest {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_InferenceResponse {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_InferenceTrace {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_Message {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_Metric {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_MetricArgs {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_MetricFamily {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_Parameter {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_ResponseAllocator {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONSERVER_Server {
    _unused: [u8; 0],
}
pub const TRITONSERVER_TYPE_INVALID: TRITONSERVER_DataType = 0;
pub const TRITONSERVER_TYPE_BOOL: TRITONSERVER_DataType = 1;
pub const TRITONSERVER_TYPE_UINT8: TRITONSERVER_DataType = 2;
pub const TRITONSERVER_TYPE_UINT16: TRITONSERVER_DataType = 3;
pub const TRITONSERVER_TYPE_UINT32: TRITONSERVER_DataType = 4;
pub const TRITONSERVER_TYPE_UINT64: TRITONSERVER_DataType = 5;
pub const TRITONSERVER_TYPE_INT8: TRITONSERVER_DataType = 6;
pub const TRITONSERVER_TYPE_INT16: TRITONSERVER_DataType = 7;
pub const TRITONSERVER_TYPE_INT32: TRITONSERVER_DataType = 8;
pub const TRITONSERVER_TYPE_INT64: TRITONSERVER_DataType = 9;
pub const TRITONSERVER_TYPE_FP16: TRITONSERVER_DataType = 10;
pub const TRITONSERVER_TYPE_FP32: TRITONSERVER_DataType = 11;
pub const TRITONSERVER_TYPE_FP64: TRITONSERVER_DataType = 12;
pub const TRITONSERVER_TYPE_BYTES: TRITONSERVER_DataType = 13;
pub const TRITONSERVER_TYPE_BF16: TRITONSERVER_DataType = 14;
pub type TRITONSERVER_DataType = u32;
pub const TRITONSERVER_MEMORY_CPU: TRITONSERVER_MemoryType = 0;
pub const TRITONSERVER_MEMORY_CPU_PINNED: TRITONSERVER_MemoryType = 1;
pub const TRITONSERVER_MEMORY_GPU: TRITONSERVER_MemoryType = 2;
pub type TRITONSERVER_MemoryType = u32;
pub const TRITONSERVER_PARAMETER_STRING: TRITONSERVER_ParameterType = 0;
pub const TRITONSERVER_PARAMETER_INT: TRITONSERVER_ParameterType = 1;
pub const TRITONSERVER_PARAMETER_BOOL: TRITONSERVER_ParameterType = 2;
pub const TRITONSERVER_PARAMETER_DOUBLE: TRITONSERVER_ParameterType = 3;
pub const TRITONSERVER_PARAMETER_BYTES: TRITONSERVER_ParameterType = 4;
pub type TRITONSERVER_ParameterType = u32;
pub const TRITONSERVER_INSTANCEGROUPKIND_AUTO: TRITONSERVER_InstanceGroupKind = 0;
pub const TRITONSERVER_INSTANCEGROUPKIND_CPU: TRITONSERVER_InstanceGroupKind = 1;
pub const TRITONSERVER_INSTANCEGROUPKIND_GPU: TRITONSERVER_InstanceGroupKind = 2;
pub const TRITONSERVER_INSTANCEGROUPKIND_MODEL: TRITONSERVER_InstanceGroupKind = 3;
pub type TRITONSERVER_InstanceGroupKind = u32;
pub const TRITONSERVER_LOG_INFO: TRITONSERVER_LogLevel = 0;
pub const TRITONSERVER_LOG_WARN: TRITONSERVER_LogLevel = 1;
pub const TRITONSERVER_LOG_ERROR: TRITONSERVER_LogLevel = 2;
pub const TRITONSERVER_LOG_VERBOSE: TRITONSERVER_LogLevel = 3;
pub type TRITONSERVER_LogLevel = u32;
pub const TRITONSERVER_ERROR_UNKNOWN: TRITONSERVER_Error_Code = 0;
pub const TRITONSERVER_ERROR_INTERNAL: TRITONSERVER_Error_Code = 1;
pub const TRITONSERVER_ERROR_NOT_FOUND: TRITONSERVER_Error_Code = 2;
pub const TRITONSERVER_ERROR_INVALID_ARG: TRITONSERVER_Error_Code = 3;
pub const TRITONSERVER_ERROR_UNAVAILABLE: TRITONSERVER_Error_Code = 4;
pub const TRITONSERVER_ERROR_UNSUPPORTED: TRITONSERVER_Error_Code = 5;
pub const TRITONSERVER_ERROR_ALREADY_EXISTS: TRITONSERVER_Error_Code = 6;
pub const TRITONSERVER_ERROR_CANCELLED: TRITONSERVER_Error_Code = 7;
pub type TRITONSERVER_Error_Code = u32;
pub const TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: TRITONSERVER_RequestFlag = 1;
pub const TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: TRITONSERVER_RequestFlag = 2;
pub type TRITONSERVER_RequestFlag = u32;
pub const TRITONSERVER_REQUEST_RELEASE_ALL: TRITONSERVER_RequestReleaseFlag = 1;
pub const TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: TRITONSERVER_RequestReleaseFlag = 2;
pub type TRITONSERVER_RequestReleaseFlag = u32;
pub const TRITONSERVER_RESPONSE_COMPLETE_FINAL: TRITONSERVER_ResponseCompleteFlag = 1;
pub type TRITONSERVER_ResponseCompleteFlag = u32;
pub const TRITONSERVER_METRIC_KIND_COUNTER: TRITONSERVER_MetricKind = 0;
pub const TRITONSERVER_METRIC_KIND_GAUGE: TRITONSERVER_MetricKind = 1;
pub const TRITONSERVER_METRIC_KIND_HISTOGRAM: TRITONSERVER_MetricKind = 2;
pub type TRITONSERVER_MetricKind = u32;
pub type TRITONSERVER_ResponseAllocatorAllocFn_t = ::std::option::Option<
    unsafe extern "C" fn(
        allocator: *mut TRITONSERVER_ResponseAllocator,
        tensor_name: *const ::std::os::raw::c_char,
        byte_size: usize,
        memory_type: TRITONSERVER_MemoryType,
        memory_type_id: i64,
        userp: *mut ::std::os::raw::c_void,
        buffer: *mut *mut ::std::os::raw::c_void,
        buffer_userp: *mut *mut ::std::os::raw::c_void,
        actual_memory_type: *mut TRITONSERVER_MemoryType,
        actual_memory_type_id: *mut i64,
    ) -> *mut TRITONSERVER_Error,
>;
pub type TRITONSERVER_ResponseAllocatorReleaseFn_t = ::std::option::Option<
    unsafe extern "C" fn(
        allocator: *mut TRITONSERVER_ResponseAllocator,
        buffer: *mut ::std::os::raw::c_void,
        buffer_userp: *mut ::std::os::raw::c_void,
        byte_size: usize,
        memory_type: TRITONSERVER_MemoryType,
        memory_type_id: i64,
    ) -> *mut TRITONSERVER_Error,
>;
pub type TRITONSERVER_ResponseAllocatorStartFn_t = ::std::option::Option<
    unsafe extern "C" fn(
        allocator: *mut TRITONSERVER_ResponseAllocator,
        userp: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error,
>;
pub type TRITONSERVER_InferenceRequestReleaseFn_t = ::std::option::Option<
    unsafe extern "C" fn(
        request: *mut TRITONSERVER_InferenceRequest,
        flags: u32,
        userp: *mut ::std::os::raw::c_void,
    ),
>;
pub type TRITONSERVER_InferenceResponseCompleteFn_t = ::std::option::Option<
    unsafe extern "C" fn(
        response: *mut TRITONSERVER_InferenceResponse,
        flags: u32,
        userp: *mut ::std::os::raw::c_void,
    ),
>;
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Backend {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_BackendAttribute {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Input {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_MemoryManager {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Model {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_ModelInstance {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Output {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Request {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_Response {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct TRITONBACKEND_ResponseFactory {
    _unused: [u8; 0],
}
pub const TRITONBACKEND_ARTIFACT_FILESYSTEM: TRITONBACKEND_ArtifactType = 0;
pub type TRITONBACKEND_ArtifactType = u32;
pub const TRITONBACKEND_EXECUTION_BLOCKING: TRITONBACKEND_ExecutionPolicy = 0;
pub const TRITONBACKEND_EXECUTION_DEVICE_BLOCKING: TRITONBACKEND_ExecutionPolicy = 1;
pub type TRITONBACKEND_ExecutionPolicy = u32;
unsafe extern "C" {
    pub fn TRITONSERVER_ErrorNew(
        code: TRITONSERVER_Error_Code,
        message: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_ErrorDelete(error: *mut TRITONSERVER_Error);
    pub fn TRITONSERVER_ErrorCode(
        error: *mut TRITONSERVER_Error,
    ) -> TRITONSERVER_Error_Code;
    pub fn TRITONSERVER_ErrorMessage(
        error: *mut TRITONSERVER_Error,
    ) -> *const ::std::os::raw::c_char;
    pub fn TRITONSERVER_LogIsEnabled(level: TRITONSERVER_LogLevel) -> bool;
    pub fn TRITONSERVER_LogMessage(
        level: TRITONSERVER_LogLevel,
        filename: *const ::std::os::raw::c_char,
        line: ::std::os::raw::c_int,
        message: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MessageNewFromSerializedJson(
        message: *mut *mut TRITONSERVER_Message,
        base: *const ::std::os::raw::c_char,
        byte_size: usize,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MessageDelete(
        message: *mut TRITONSERVER_Message,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MessageSerializeToJson(
        message: *mut TRITONSERVER_Message,
        base: *mut *const ::std::os::raw::c_char,
        byte_size: *mut usize,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_ParameterNew(
        name: *const ::std::os::raw::c_char,
        type_: TRITONSERVER_ParameterType,
        value: *const ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Parameter;
    pub fn TRITONSERVER_ParameterDelete(parameter: *mut TRITONSERVER_Parameter);
    pub fn TRITONSERVER_MetricFamilyNew(
        family: *mut *mut TRITONSERVER_MetricFamily,
        kind: TRITONSERVER_MetricKind,
        name: *const ::std::os::raw::c_char,
        description: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricFamilyDelete(
        family: *mut TRITONSERVER_MetricFamily,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricNew(
        metric: *mut *mut TRITONSERVER_Metric,
        family: *mut TRITONSERVER_MetricFamily,
        labels: *mut *const TRITONSERVER_Parameter,
        label_count: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricDelete(
        metric: *mut TRITONSERVER_Metric,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricValue(
        metric: *mut TRITONSERVER_Metric,
        value: *mut f64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricIncrement(
        metric: *mut TRITONSERVER_Metric,
        value: f64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricSet(
        metric: *mut TRITONSERVER_Metric,
        value: f64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricArgsNew(
        args: *mut *mut TRITONSERVER_MetricArgs,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricArgsDelete(
        args: *mut TRITONSERVER_MetricArgs,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricArgsSetHistogram(
        args: *mut TRITONSERVER_MetricArgs,
        buckets: *const f64,
        bucket_count: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricNewWithArgs(
        metric: *mut *mut TRITONSERVER_Metric,
        family: *mut TRITONSERVER_MetricFamily,
        labels: *mut *const TRITONSERVER_Parameter,
        label_count: u64,
        args: *const TRITONSERVER_MetricArgs,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_MetricObserve(
        metric: *mut TRITONSERVER_Metric,
        value: f64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceTraceReportActivity(
        trace: *mut TRITONSERVER_InferenceTrace,
        timestamp: u64,
        name: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_BufferAttributesNew(
        attributes: *mut *mut TRITONSERVER_BufferAttributes,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_BufferAttributesDelete(
        attributes: *mut TRITONSERVER_BufferAttributes,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_BufferAttributesSetMemoryType(
        attributes: *mut TRITONSERVER_BufferAttributes,
        memory_type: TRITONSERVER_MemoryType,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_BufferAttributesSetMemoryTypeId(
        attributes: *mut TRITONSERVER_BufferAttributes,
        memory_type_id: i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_BufferAttributesSetByteSize(
        attributes: *mut TRITONSERVER_BufferAttributes,
        byte_size: usize,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_ResponseAllocatorNew(
        allocator: *mut *mut TRITONSERVER_ResponseAllocator,
        alloc: TRITONSERVER_ResponseAllocatorAllocFn_t,
        release: TRITONSERVER_ResponseAllocatorReleaseFn_t,
        start: TRITONSERVER_ResponseAllocatorStartFn_t,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_ResponseAllocatorDelete(
        allocator: *mut TRITONSERVER_ResponseAllocator,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestNew(
        request: *mut *mut TRITONSERVER_InferenceRequest,
        server: *mut TRITONSERVER_Server,
        model_name: *const ::std::os::raw::c_char,
        model_version: i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestDelete(
        request: *mut TRITONSERVER_InferenceRequest,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestSetId(
        request: *mut TRITONSERVER_InferenceRequest,
        id: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestAddInput(
        request: *mut TRITONSERVER_InferenceRequest,
        name: *const ::std::os::raw::c_char,
        datatype: TRITONSERVER_DataType,
        shape: *const i64,
        dim_count: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestAppendInputData(
        request: *mut TRITONSERVER_InferenceRequest,
        name: *const ::std::os::raw::c_char,
        base: *const ::std::os::raw::c_void,
        byte_size: usize,
        memory_type: TRITONSERVER_MemoryType,
        memory_type_id: i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestAddRequestedOutput(
        request: *mut TRITONSERVER_InferenceRequest,
        name: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestSetReleaseCallback(
        request: *mut TRITONSERVER_InferenceRequest,
        release: TRITONSERVER_InferenceRequestReleaseFn_t,
        userp: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestSetResponseCallback(
        request: *mut TRITONSERVER_InferenceRequest,
        allocator: *mut TRITONSERVER_ResponseAllocator,
        allocator_userp: *mut ::std::os::raw::c_void,
        response: TRITONSERVER_InferenceResponseCompleteFn_t,
        userp: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceRequestCancel(
        request: *mut TRITONSERVER_InferenceRequest,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_ServerInferAsync(
        server: *mut TRITONSERVER_Server,
        request: *mut TRITONSERVER_InferenceRequest,
        trace: *mut TRITONSERVER_InferenceTrace,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceResponseError(
        response: *mut TRITONSERVER_InferenceResponse,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceResponseOutputCount(
        response: *mut TRITONSERVER_InferenceResponse,
        count: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceResponseOutput(
        response: *mut TRITONSERVER_InferenceResponse,
        index: u32,
        name: *mut *const ::std::os::raw::c_char,
        datatype: *mut TRITONSERVER_DataType,
        shape: *mut *const i64,
        dim_count: *mut u64,
        base: *mut *const ::std::os::raw::c_void,
        byte_size: *mut usize,
        memory_type: *mut TRITONSERVER_MemoryType,
        memory_type_id: *mut i64,
        userp: *mut *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONSERVER_InferenceResponseDelete(
        response: *mut TRITONSERVER_InferenceResponse,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ApiVersion(
        major: *mut u32,
        minor: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendName(
        backend: *mut TRITONBACKEND_Backend,
        name: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendConfig(
        backend: *mut TRITONBACKEND_Backend,
        backend_config: *mut *mut TRITONSERVER_Message,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendArtifacts(
        backend: *mut TRITONBACKEND_Backend,
        type_: *mut TRITONBACKEND_ArtifactType,
        location: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendSetExecutionPolicy(
        backend: *mut TRITONBACKEND_Backend,
        policy: TRITONBACKEND_ExecutionPolicy,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendState(
        backend: *mut TRITONBACKEND_Backend,
        state: *mut *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendSetState(
        backend: *mut TRITONBACKEND_Backend,
        state: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendMemoryManager(
        backend: *mut TRITONBACKEND_Backend,
        manager: *mut *mut TRITONBACKEND_MemoryManager,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_MemoryManagerAllocate(
        manager: *mut TRITONBACKEND_MemoryManager,
        buffer: *mut *mut ::std::os::raw::c_void,
        memory_type: TRITONSERVER_MemoryType,
        memory_type_id: i64,
        byte_size: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_MemoryManagerFree(
        manager: *mut TRITONBACKEND_MemoryManager,
        buffer: *mut ::std::os::raw::c_void,
        memory_type: TRITONSERVER_MemoryType,
        memory_type_id: i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
        attribute: *mut TRITONBACKEND_BackendAttribute,
        kind: TRITONSERVER_InstanceGroupKind,
        count: u64,
        device_ids: *const u64,
        id_count: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading(
        attribute: *mut TRITONBACKEND_BackendAttribute,
        enabled: bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelName(
        model: *mut TRITONBACKEND_Model,
        name: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelVersion(
        model: *mut TRITONBACKEND_Model,
        version: *mut u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelRepository(
        model: *mut TRITONBACKEND_Model,
        type_: *mut TRITONBACKEND_ArtifactType,
        location: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelConfig(
        model: *mut TRITONBACKEND_Model,
        config_version: u32,
        model_config: *mut *mut TRITONSERVER_Message,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelAutoCompleteConfig(
        model: *mut TRITONBACKEND_Model,
        auto_complete: *mut bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelSetConfig(
        model: *mut TRITONBACKEND_Model,
        config_version: u32,
        model_config: *mut TRITONSERVER_Message,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelServer(
        model: *mut TRITONBACKEND_Model,
        server: *mut *mut TRITONSERVER_Server,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelBackend(
        model: *mut TRITONBACKEND_Model,
        backend: *mut *mut TRITONBACKEND_Backend,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelState(
        model: *mut TRITONBACKEND_Model,
        state: *mut *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelSetState(
        model: *mut TRITONBACKEND_Model,
        state: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelReportMemoryUsage(
        model: *mut TRITONBACKEND_Model,
        usage: *mut *mut TRITONSERVER_BufferAttributes,
        usage_size: u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceName(
        instance: *mut TRITONBACKEND_ModelInstance,
        name: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceKind(
        instance: *mut TRITONBACKEND_ModelInstance,
        kind: *mut TRITONSERVER_InstanceGroupKind,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceDeviceId(
        instance: *mut TRITONBACKEND_ModelInstance,
        device_id: *mut i32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceHostPolicy(
        instance: *mut TRITONBACKEND_ModelInstance,
        host_policy: *mut *mut TRITONSERVER_Message,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceIsPassive(
        instance: *mut TRITONBACKEND_ModelInstance,
        is_passive: *mut bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceModel(
        instance: *mut TRITONBACKEND_ModelInstance,
        model: *mut *mut TRITONBACKEND_Model,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceState(
        instance: *mut TRITONBACKEND_ModelInstance,
        state: *mut *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceSetState(
        instance: *mut TRITONBACKEND_ModelInstance,
        state: *mut ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceReportMemoryUsage(
        instance: *mut TRITONBACKEND_ModelInstance,
        usage: *mut *mut TRITONSERVER_BufferAttributes,
        usage_size: u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceReportStatistics(
        instance: *mut TRITONBACKEND_ModelInstance,
        request: *mut TRITONBACKEND_Request,
        success: bool,
        exec_start_ns: u64,
        compute_start_ns: u64,
        compute_end_ns: u64,
        exec_end_ns: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance: *mut TRITONBACKEND_ModelInstance,
        batch_size: u64,
        exec_start_ns: u64,
        compute_start_ns: u64,
        compute_end_ns: u64,
        exec_end_ns: u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestId(
        request: *mut TRITONBACKEND_Request,
        id: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestCorrelationId(
        request: *mut TRITONBACKEND_Request,
        id: *mut u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestCorrelationIdString(
        request: *mut TRITONBACKEND_Request,
        id: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestFlags(
        request: *mut TRITONBACKEND_Request,
        flags: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestIsCancelled(
        request: *mut TRITONBACKEND_Request,
        is_cancelled: *mut bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_InferenceRequestTimeoutMicroseconds(
        request: *mut TRITONBACKEND_Request,
        timeout: *mut u64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestParameterCount(
        request: *mut TRITONBACKEND_Request,
        count: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestParameter(
        request: *mut TRITONBACKEND_Request,
        index: u32,
        key: *mut *const ::std::os::raw::c_char,
        type_: *mut TRITONSERVER_ParameterType,
        value: *mut *const ::std::os::raw::c_void,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestInputCount(
        request: *mut TRITONBACKEND_Request,
        count: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestInputName(
        request: *mut TRITONBACKEND_Request,
        index: u32,
        name: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestInput(
        request: *mut TRITONBACKEND_Request,
        name: *const ::std::os::raw::c_char,
        input: *mut *mut TRITONBACKEND_Input,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestInputByIndex(
        request: *mut TRITONBACKEND_Request,
        index: u32,
        input: *mut *mut TRITONBACKEND_Input,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestOutputCount(
        request: *mut TRITONBACKEND_Request,
        count: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestOutputName(
        request: *mut TRITONBACKEND_Request,
        index: u32,
        name: *mut *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestOutputBufferProperties(
        request: *mut TRITONBACKEND_Request,
        name: *const ::std::os::raw::c_char,
        byte_size: *mut usize,
        memory_type: *mut TRITONSERVER_MemoryType,
        memory_type_id: *mut i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestTrace(
        request: *mut TRITONBACKEND_Request,
        trace: *mut *mut TRITONSERVER_InferenceTrace,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_RequestRelease(
        request: *mut TRITONBACKEND_Request,
        release_flags: u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_InputProperties(
        input: *mut TRITONBACKEND_Input,
        name: *mut *const ::std::os::raw::c_char,
        datatype: *mut TRITONSERVER_DataType,
        shape: *mut *const i64,
        dims_count: *mut u32,
        byte_size: *mut u64,
        buffer_count: *mut u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_InputBuffer(
        input: *mut TRITONBACKEND_Input,
        index: u32,
        buffer: *mut *const ::std::os::raw::c_void,
        buffer_byte_size: *mut u64,
        memory_type: *mut TRITONSERVER_MemoryType,
        memory_type_id: *mut i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseFactoryNew(
        factory: *mut *mut TRITONBACKEND_ResponseFactory,
        request: *mut TRITONBACKEND_Request,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseFactoryDelete(
        factory: *mut TRITONBACKEND_ResponseFactory,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseFactoryIsCancelled(
        factory: *mut TRITONBACKEND_ResponseFactory,
        is_cancelled: *mut bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseFactorySendFlags(
        factory: *mut TRITONBACKEND_ResponseFactory,
        send_flags: u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseNew(
        response: *mut *mut TRITONBACKEND_Response,
        request: *mut TRITONBACKEND_Request,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseNewFromFactory(
        response: *mut *mut TRITONBACKEND_Response,
        factory: *mut TRITONBACKEND_ResponseFactory,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseDelete(
        response: *mut TRITONBACKEND_Response,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseSetStringParameter(
        response: *mut TRITONBACKEND_Response,
        name: *const ::std::os::raw::c_char,
        value: *const ::std::os::raw::c_char,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseSetIntParameter(
        response: *mut TRITONBACKEND_Response,
        name: *const ::std::os::raw::c_char,
        value: i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseSetBoolParameter(
        response: *mut TRITONBACKEND_Response,
        name: *const ::std::os::raw::c_char,
        value: bool,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseSetDoubleParameter(
        response: *mut TRITONBACKEND_Response,
        name: *const ::std::os::raw::c_char,
        value: f64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseOutput(
        response: *mut TRITONBACKEND_Response,
        output: *mut *mut TRITONBACKEND_Output,
        name: *const ::std::os::raw::c_char,
        datatype: TRITONSERVER_DataType,
        shape: *const i64,
        dims_count: u32,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_OutputBuffer(
        output: *mut TRITONBACKEND_Output,
        buffer: *mut *mut ::std::os::raw::c_void,
        buffer_byte_size: u64,
        memory_type: *mut TRITONSERVER_MemoryType,
        memory_type_id: *mut i64,
    ) -> *mut TRITONSERVER_Error;
    pub fn TRITONBACKEND_ResponseSend(
        response: *mut TRITONBACKEND_Response,
        send_flags: u32,
        error: *mut TRITONSERVER_Error,
    ) -> *mut TRITONSERVER_Error;
}
