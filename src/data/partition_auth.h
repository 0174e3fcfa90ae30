// How two nodes of a partitioned cache prove to each other that they have the same key, without sending it.
//
// Each side chooses 32 random bytes and proves that it can compute HMAC-SHA-256 (RFC 2104) over both and the whole Hello, under a
// label of its own, so that no proof can be given back to the side that made it. This decides who may open a connection; what
// goes over it is neither encrypted nor signed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace tidepool::data {

using AuthBytes = std::array<uint8_t, 32>;

inline constexpr int64_t kLeastPeerKeyBytes = 16, kMostPeerKeyBytes = 4096;

// The error of whoever has not the key.
template <typename... Args>
Status Unauthenticated(fmt::format_string<Args...> format, Args&&... args) {
  return Status(StatusCode::kUnauthenticated, fmt::format(format, std::forward<Args>(args)...));
}

// The bytes of the file, as they are. INVALID_ARGUMENT for too few or too many, PERMISSION_DENIED if others than its owner can
// read it.
StatusOr<std::string> ReadPeerKey(const std::string& path);

AuthBytes RandomAuthBytes();
// `hello`: the encoded fields of the Hello, with the client's random bytes; `challenge`: the server's.
AuthBytes ServerProof(std::string_view key, std::string_view hello, const AuthBytes& challenge);
AuthBytes ClientProof(std::string_view key, std::string_view hello, const AuthBytes& challenge);
// In a time that does not tell where they differ.
bool SameAuthBytes(const AuthBytes& a, const AuthBytes& b);

}  // namespace tidepool::data
