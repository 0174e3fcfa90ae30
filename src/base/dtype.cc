#include "base/dtype.h"

#include <array>

namespace tidepool {
namespace {

struct Row {
  DType dtype;
  int64_t size_bytes;
  std::string_view safetensors;
  std::string_view inference;
};

constexpr std::array<Row, 14> kRows = {{{DType::kBool, 1, "BOOL", "BOOL"},
                                        {DType::kU8, 1, "U8", "UINT8"},
                                        {DType::kI8, 1, "I8", "INT8"},
                                        {DType::kU16, 2, "U16", "UINT16"},
                                        {DType::kI16, 2, "I16", "INT16"},
                                        {DType::kU32, 4, "U32", "UINT32"},
                                        {DType::kI32, 4, "I32", "INT32"},
                                        {DType::kU64, 8, "U64", "UINT64"},
                                        {DType::kI64, 8, "I64", "INT64"},
                                        {DType::kF16, 2, "F16", "FP16"},
                                        {DType::kBF16, 2, "BF16", "BF16"},
                                        {DType::kF32, 4, "F32", "FP32"},
                                        {DType::kF64, 8, "F64", "FP64"},
                                        {DType::kBytes, 0, "", "BYTES"}}};

const Row& RowOf(DType dtype) {
  const auto& row = kRows[static_cast<size_t>(dtype)];
  TIDEPOOL_CHECK(row.dtype == dtype, "the dtype table is out of order at {}", static_cast<int>(dtype));
  return row;
}

}  // namespace

int64_t SizeOf(DType dtype) { return RowOf(dtype).size_bytes; }
std::string_view SafetensorsName(DType dtype) { return RowOf(dtype).safetensors; }
std::string_view InferenceName(DType dtype) { return RowOf(dtype).inference; }

StatusOr<DType> DTypeFromSafetensors(std::string_view name) {
  for (const Row& row : kRows) {
    if (!row.safetensors.empty() && row.safetensors == name) return row.dtype;
  }
  return InvalidArgument("dtype '{}' is not supported; allowed: BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64",
                         name.substr(0, 60));
}

StatusOr<DType> DTypeFromInference(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.inference == name) return row.dtype;
  }
  return InvalidArgument(
      "datatype '{}' is unknown; allowed: BOOL UINT8 INT8 UINT16 INT16 UINT32 INT32 UINT64 INT64 FP16 BF16 FP32 FP64 "
      "BYTES",
      name.substr(0, 60));
}

}  // namespace tidepool
