// Element types of tensors, with their names in the formats that we speak.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace tidepool {

enum class DType : uint8_t { kBool, kU8, kI8, kU16, kI16, kU32, kI32, kU64, kI64, kF16, kBF16, kF32, kF64, kBytes };

// Bytes of one element. kBytes (variable length) has no size: 0.
int64_t SizeOf(DType dtype);

// Names as safetensors writes them: BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64.
std::string_view SafetensorsName(DType dtype);
StatusOr<DType> DTypeFromSafetensors(std::string_view name);

// Names as the Open Inference Protocol writes them: BOOL UINT8 INT8 ... FP16 BF16 FP32 FP64 BYTES.
std::string_view InferenceName(DType dtype);
StatusOr<DType> DTypeFromInference(std::string_view name);

}  // namespace tidepool
