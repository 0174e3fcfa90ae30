// What the nodes of a partitioned cache say to each other over TCP. docs/data.md has the byte-exact table.
//
// A frame is a header of 16 bytes (u32 length of what follows it, u16 type, u16 zero, u64 call), then the fields of the message
// in the order of the structs below, little-endian, without padding. An answer carries the call number of its request. Samples
// are named by their numbers; no path and no name ever crosses the wire.
//
// Every change of a message raises kPartitionVersion, and two sides of different versions refuse each other; the header, Hello as
// far as its version, and Error stay as they are for ever.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/status.h"
#include "data/partition_auth.h"

namespace tidepool::data {

inline constexpr uint32_t kPartitionMagic = 0x43505054;  // "TPPC"
inline constexpr uint16_t kPartitionVersion = 2;
inline constexpr size_t kFrameHeaderBytes = 16;
inline constexpr size_t kMaxControlBytes = 1024;  // of any message but Record
inline constexpr size_t kRecordPrefixBytes = 8;   // of a Record before its bytes
inline constexpr size_t kMaxErrorTextBytes = 512;

// What both ends must agree on.
struct PartitionIdentity {
  uint64_t seed = 0;
  uint64_t fingerprint = 0;  // of the records
  uint64_t layout = 0;       // of the groups: ownership goes by group
  int64_t records = 0;
  uint32_t nodes = 0;
  friend bool operator==(const PartitionIdentity&, const PartitionIdentity&) = default;
};

struct HelloFrame {  // client: the first frame of a connection
  static constexpr uint16_t kType = 1;
  uint32_t magic = kPartitionMagic;
  uint16_t version = kPartitionVersion;
  PartitionIdentity identity;
  uint32_t from = 0, to = 0;  // nodes
  AuthBytes nonce{};          // random, if the client has a key
  friend bool operator==(const HelloFrame&, const HelloFrame&) = default;
};

struct WelcomeFrame {  // server: answer to Hello
  static constexpr uint16_t kType = 2;
  uint16_t version = kPartitionVersion;
  uint32_t node = 0;
  uint64_t incarnation = 0;  // another one means that the node has started again, with an empty cache
  friend bool operator==(const WelcomeFrame&, const WelcomeFrame&) = default;
};

struct ErrorFrame {  // server: answer to what failed; after a refused Hello the connection ends
  static constexpr uint16_t kType = 3;
  uint16_t code = 0;  // of Abseil and gRPC
  std::string text;   // cut at kMaxErrorTextBytes
  friend bool operator==(const ErrorFrame&, const ErrorFrame&) = default;
};

struct GetFrame {  // client
  static constexpr uint16_t kType = 4;
  int64_t record = 0;
  friend bool operator==(const GetFrame&, const GetFrame&) = default;
};

// Server: answer to Get, followed by the record's bytes, which are not part of the decoded message.
struct RecordFrame {
  static constexpr uint16_t kType = 5;
  uint64_t checksum = 0;  // XXH3 (64 bits) of the bytes
  friend bool operator==(const RecordFrame&, const RecordFrame&) = default;
};

struct AbsentFrame {  // server: answer to Get
  static constexpr uint16_t kType = 6;
  bool for_good = false;  // this incarnation will never have it
  friend bool operator==(const AbsentFrame&, const AbsentFrame&) = default;
};

struct ChallengeFrame {  // server with a key: answer to Hello
  static constexpr uint16_t kType = 7;
  AuthBytes nonce{}, proof{};  // random; ServerProof
  friend bool operator==(const ChallengeFrame&, const ChallengeFrame&) = default;
};

struct ProofFrame {  // client: answer to Challenge; Welcome or Error follows
  static constexpr uint16_t kType = 8;
  AuthBytes proof{};  // ClientProof
  friend bool operator==(const ProofFrame&, const ProofFrame&) = default;
};

using PartitionMessage =
    std::variant<HelloFrame, WelcomeFrame, ErrorFrame, GetFrame, RecordFrame, AbsentFrame, ChallengeFrame, ProofFrame>;

struct FrameHeader {
  uint32_t length = 0;
  uint16_t type = 0;
  uint64_t call = 0;
};

// A whole frame. `record_bytes` is what follows a RecordFrame.
std::string EncodeFrame(uint64_t call, const PartitionMessage& message, int64_t record_bytes = 0);
// INVALID_ARGUMENT if the zero field is not zero, the type is unknown, or the length is not one that the type can have; a Record
// may have up to `max_record_bytes`.
StatusOr<FrameHeader> DecodeFrameHeader(std::string_view bytes, int64_t max_record_bytes);
// What follows the header; of a Record, its first kRecordPrefixBytes. INVALID_ARGUMENT for what is cut short, too long or out of
// range. A Hello of another version is decoded as far as its version.
StatusOr<PartitionMessage> DecodeFrameBody(uint16_t type, std::string_view body);

// What the proofs cover of a Hello.
std::string HelloBytes(const HelloFrame& hello);
// Why a Hello of this version cannot be answered; OK if it can.
Status CheckHelloVersion(const HelloFrame& hello);
// Why `hello` cannot be answered by node `node` of `identity`; OK if it can.
Status CheckHello(const HelloFrame& hello, const PartitionIdentity& identity, uint32_t node);

ErrorFrame ToErrorFrame(const Status& status);
Status ToStatus(const ErrorFrame& error);
uint64_t RecordChecksum(std::string_view bytes);

}  // namespace tidepool::data
