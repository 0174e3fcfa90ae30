// Messages between the broker and its clients. docs/pool.md has the byte-exact table.
//
// One message is one packet: a header of 8 bytes (u16 type, u16 zero, u32 call), then the fields in the order of the structs
// below, little-endian, without padding. Text is a u16 length and its bytes. An answer carries the call number of its request;
// what the broker says of its own accord carries 0. Every change of a message raises kProtocolVersion, and the two sides refuse
// each other unless they speak the same one; the header, kHello's first two fields and kStatus stay as they are for ever.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pool/types.h"

namespace tidepool::pool {

inline constexpr uint32_t kProtocolMagic = 0x4c4f5054;  // "TPOL"
inline constexpr uint16_t kProtocolVersion = 2;
inline constexpr size_t kMaxNameBytes = 256;
inline constexpr size_t kMaxMessageExtents = 8000;

struct HelloMessage {  // client: first message of a connection
  static constexpr uint16_t kType = 1;
  uint32_t magic = kProtocolMagic;
  uint16_t version = kProtocolVersion;
  std::string name;
  friend bool operator==(const HelloMessage&, const HelloMessage&) = default;
};

struct WelcomeMessage {  // broker: answer to Hello, with the memory's descriptor attached
  static constexpr uint16_t kType = 2;
  uint16_t version = kProtocolVersion;
  bool paused = false;
  device::MappingMode mapping = device::MappingMode::kFast;
  int64_t capacity_bytes = 0;
  int64_t page_bytes = 0;
  std::string device_name;
  std::string device_kind;
  friend bool operator==(const WelcomeMessage&, const WelcomeMessage&) = default;
};

struct StatusMessage {  // broker: answer to everything that has no other answer, and to what failed
  static constexpr uint16_t kType = 3;
  uint16_t code = 0;  // of Abseil and gRPC
  std::string text;   // cut at kMaxStatusBytes
  friend bool operator==(const StatusMessage&, const StatusMessage&) = default;
};
inline constexpr size_t kMaxStatusBytes = 4096;

struct OpenLeaseMessage {  // client
  static constexpr uint16_t kType = 4;
  LeaseOptions options;
  friend bool operator==(const OpenLeaseMessage& a, const OpenLeaseMessage& b);
};

struct LeaseOpenedMessage {  // broker: answer to OpenLease
  static constexpr uint16_t kType = 5;
  LeaseId lease;
  int64_t limit_pages = 0;
  friend bool operator==(const LeaseOpenedMessage&, const LeaseOpenedMessage&) = default;
};

struct CloseLeaseMessage {  // client
  static constexpr uint16_t kType = 6;
  LeaseId lease;
  friend bool operator==(const CloseLeaseMessage&, const CloseLeaseMessage&) = default;
};

struct GrowMessage {  // client
  static constexpr uint16_t kType = 7;
  LeaseId lease;
  int64_t pages = 0;
  int64_t min_run_pages = 1;
  int64_t timeout_ns = 0;  // from receipt; negative: has passed already
  friend bool operator==(const GrowMessage&, const GrowMessage&) = default;
};

struct GrantedMessage {  // broker: answer to Grow
  static constexpr uint16_t kType = 8;
  LeaseId lease;
  std::vector<Extent> extents;
  friend bool operator==(const GrantedMessage&, const GrantedMessage&) = default;
};

struct ReturnMessage {  // client
  static constexpr uint16_t kType = 9;
  LeaseId lease;
  std::vector<Extent> extents;
  friend bool operator==(const ReturnMessage&, const ReturnMessage&) = default;
};

struct SetGuaranteedMessage {  // client
  static constexpr uint16_t kType = 10;
  LeaseId lease;
  int64_t pages = 0;
  friend bool operator==(const SetGuaranteedMessage&, const SetGuaranteedMessage&) = default;
};

struct SetPreferredMessage {  // client
  static constexpr uint16_t kType = 16;
  LeaseId lease;
  int64_t pages = 0;
  friend bool operator==(const SetPreferredMessage&, const SetPreferredMessage&) = default;
};

struct RevokeMessage {  // broker, of its own accord; also sets the lease's limit
  static constexpr uint16_t kType = 11;
  LeaseId lease;
  DemandId demand;
  int64_t limit_pages = 0;
  int64_t slack_ns = 0;
  friend bool operator==(const RevokeMessage&, const RevokeMessage&) = default;
};

struct FinishRevokeMessage {  // client
  static constexpr uint16_t kType = 12;
  LeaseId lease;
  DemandId demand;
  int64_t received_ns = 0;  // MonotonicNanos() when the Revoke came
  int64_t cached_ns = 0, wait_ns = 0, unwind_ns = 0, give_back_ns = 0;
  bool aborted = false, boundary = false;
  friend bool operator==(const FinishRevokeMessage&, const FinishRevokeMessage&) = default;
};

struct LimitMessage {  // broker, of its own accord
  static constexpr uint16_t kType = 13;
  LeaseId lease;
  int64_t limit_pages = 0;
  friend bool operator==(const LimitMessage&, const LimitMessage&) = default;
};

struct PausedMessage {  // broker, of its own accord: training is paused or goes on
  static constexpr uint16_t kType = 14;
  bool paused = false;
  friend bool operator==(const PausedMessage&, const PausedMessage&) = default;
};

struct DetachMessage {  // client: it has no mapping of device memory any more and ends the connection
  static constexpr uint16_t kType = 15;
  friend bool operator==(const DetachMessage&, const DetachMessage&) = default;
};

using Message = std::variant<HelloMessage, WelcomeMessage, StatusMessage, OpenLeaseMessage, LeaseOpenedMessage, CloseLeaseMessage,
                             GrowMessage, GrantedMessage, ReturnMessage, SetGuaranteedMessage, RevokeMessage, FinishRevokeMessage,
                             LimitMessage, PausedMessage, DetachMessage, SetPreferredMessage>;

struct Envelope {
  uint32_t call = 0;
  Message message;
};

std::string Encode(uint32_t call, const Message& message);
// INVALID_ARGUMENT for a packet that is cut short, too long, or has a field outside of its range; UNIMPLEMENTED for an unknown
// type. A Hello of another version is decoded as far as its version, with an empty name.
StatusOr<Envelope> Decode(std::string_view packet);
// The call number of a packet that cannot be decoded further, so that its sender gets an answer; 0 if there is none.
uint32_t CallOf(std::string_view packet);
std::string_view NameOf(const Message& message);

StatusMessage ToMessage(const Status& status);
Status ToStatus(const StatusMessage& message);

}  // namespace tidepool::pool
