/* Proves that the headers are valid C and that enums are 32 bits wide, which the Rust side relies on. */
#include "tritonbackend.h"

_Static_assert(sizeof(TRITONSERVER_DataType) == sizeof(uint32_t), "DataType is 32 bits");
_Static_assert(sizeof(TRITONSERVER_MemoryType) == sizeof(uint32_t), "MemoryType is 32 bits");
_Static_assert(sizeof(TRITONSERVER_ParameterType) == sizeof(uint32_t), "ParameterType is 32 bits");
_Static_assert(sizeof(TRITONSERVER_InstanceGroupKind) == sizeof(uint32_t), "InstanceGroupKind is 32 bits");
_Static_assert(sizeof(TRITONSERVER_LogLevel) == sizeof(uint32_t), "LogLevel is 32 bits");
_Static_assert(sizeof(TRITONSERVER_Error_Code) == sizeof(uint32_t), "Error_Code is 32 bits");
_Static_assert(sizeof(TRITONSERVER_MetricKind) == sizeof(uint32_t), "MetricKind is 32 bits");
_Static_assert(sizeof(bool) == 1, "bool is one byte");
