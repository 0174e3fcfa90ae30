// What the coordinator of shared preparation and the jobs say to each other over a Unix socket of whole packets, and how a batch
// lies in staging memory. docs/data.md has the byte-exact table.
//
// A packet is u16 type, u16 zero, then the fields of the message in the order of the structs below, little-endian, without
// padding. Batches are named by their number g = epoch * batches + batch; no path crosses the socket.
//
// Every change of a message or of the layout raises kPrepVersion, and two sides of different versions refuse each other; the
// first 12 bytes of Join, and Error, stay as they are for ever.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "base/status.h"

namespace tidepool::data {

inline constexpr uint32_t kPrepMagic = 0x50535054;  // "TPSP"
inline constexpr uint16_t kPrepVersion = 1;
inline constexpr size_t kMaxPrepTextBytes = 1024;
inline constexpr size_t kMaxPrepNameBytes = 64;

// What all jobs prepare: the first one says it, the others must say the same.
struct PrepPlan {
  uint64_t fingerprint = 0;  // of the data
  uint64_t settings = 0;     // hash of all else that decides about bytes: decoding, order, augmentation, broken samples
  uint64_t seed = 0;
  int64_t samples = 0, batch = 0, epochs = 0;
  int64_t input_bytes = 0, target_bytes = 0;  // of a sample
  bool drop_last = false;
  friend bool operator==(const PrepPlan&, const PrepPlan&) = default;

  Status Validate() const;
  int64_t batches() const { return drop_last ? samples / batch : (samples + batch - 1) / batch; }  // of an epoch
  // Samples of batch b of an epoch.
  int64_t size_of(int64_t b) const { return std::min(batch, samples - b * batch); }

  // A slot: inputs of `batch` samples, targets of as many (at a multiple of 64), then their numbers in the data set as i64.
  int64_t targets_at() const;
  int64_t numbers_at() const;
  int64_t slot_bytes() const;  // a multiple of 4096
};
// Why `theirs` cannot join `ours`; OK if it can.
Status CheckPlan(const PrepPlan& theirs, const PrepPlan& ours);

struct JoinPacket {  // job: the first packet
  static constexpr uint16_t kType = 1;
  uint32_t magic = kPrepMagic;
  uint16_t version = kPrepVersion;
  PrepPlan plan;
  std::string name;  // for messages; cut at kMaxPrepNameBytes
  friend bool operator==(const JoinPacket&, const JoinPacket&) = default;
};
struct JoinedPacket {  // coordinator: answer to Join, with the descriptor of the staging memory
  static constexpr uint16_t kType = 2;
  uint32_t job = 0;
  int64_t first = 0;  // the number of the first batch that the job will get
  uint32_t slots = 0, held = 0;
  friend bool operator==(const JoinedPacket&, const JoinedPacket&) = default;
};
struct ErrorPacket {  // coordinator: the job cannot join, or takes part no more
  static constexpr uint16_t kType = 3;
  uint16_t code = 0;  // of Abseil and gRPC
  std::string text;   // cut at kMaxPrepTextBytes
  friend bool operator==(const ErrorPacket&, const ErrorPacket&) = default;
};
struct WantPacket {  // job: one more thread of it can prepare
  static constexpr uint16_t kType = 4;
  friend bool operator==(const WantPacket&, const WantPacket&) = default;
};
struct LeasePacket {  // coordinator: prepare this; answers one Want
  static constexpr uint16_t kType = 5;
  uint64_t token = 0;
  int64_t number = 0;
  uint32_t slot = 0;
  friend bool operator==(const LeasePacket&, const LeasePacket&) = default;
};
struct DonePacket {  // job: the slot of the lease is filled, or could not be
  static constexpr uint16_t kType = 6;
  uint64_t token = 0;
  int64_t samples = 0, replaced = 0;
  uint16_t code = 0;  // 0: filled
  std::string text;
  friend bool operator==(const DonePacket&, const DonePacket&) = default;
};
struct TakePacket {  // job: give me my next batch
  static constexpr uint16_t kType = 7;
  friend bool operator==(const TakePacket&, const TakePacket&) = default;
};
struct BatchPacket {  // coordinator: answer to Take
  static constexpr uint16_t kType = 8;
  int64_t number = 0;
  uint32_t slot = 0;
  int64_t samples = 0, replaced = 0;
  uint16_t code = 0;  // not 0: it could not be prepared, and there is nothing to release
  std::string text;
  friend bool operator==(const BatchPacket&, const BatchPacket&) = default;
};
struct ReleasePacket {  // job: it looks at the batch no more
  static constexpr uint16_t kType = 9;
  int64_t number = 0;
  friend bool operator==(const ReleasePacket&, const ReleasePacket&) = default;
};
struct EndPacket {  // coordinator: answer to Take after the last batch
  static constexpr uint16_t kType = 10;
  friend bool operator==(const EndPacket&, const EndPacket&) = default;
};
struct ByePacket {  // job: it prepares and takes nothing more, and only releases what it still holds
  static constexpr uint16_t kType = 11;
  friend bool operator==(const ByePacket&, const ByePacket&) = default;
};

using PrepMessage = std::variant<JoinPacket, JoinedPacket, ErrorPacket, WantPacket, LeasePacket, DonePacket, TakePacket,
                                 BatchPacket, ReleasePacket, EndPacket, ByePacket>;

std::string EncodePrep(const PrepMessage& message);
// INVALID_ARGUMENT for what is cut short, too long, of an unknown type or out of range. A Join of another version is decoded as
// far as its version.
StatusOr<PrepMessage> DecodePrep(std::string_view packet);

// A Status as the code and text of a packet, and back. Text is cut.
ErrorPacket ToErrorPacket(const Status& status);
Status ToPrepStatus(uint16_t code, const std::string& text);

}  // namespace tidepool::data
