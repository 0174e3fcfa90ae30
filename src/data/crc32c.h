// CRC-32C (Castagnoli, polynomial 0x1edc6f41), with the processor's instruction where it has one; and the mask that TFRecord puts
// on it, so that a checksum of data that holds checksums stays sound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tidepool::data {

uint32_t Crc32c(std::span<const std::byte> bytes);
// Without the instruction; the same values.
uint32_t Crc32cPortable(std::span<const std::byte> bytes);

inline uint32_t MaskCrc(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

}  // namespace tidepool::data
