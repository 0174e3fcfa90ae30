#include "data/partition_protocol.h"

#include <xxhash.h>

#include <utility>

#include "data/cache_wire.h"

namespace tidepool::data {
namespace {

constexpr size_t kHelloPrefixBytes = 8;  // magic, version, zero
constexpr size_t kHelloBytes = kHelloPrefixBytes + 4 * sizeof(uint64_t) + 3 * sizeof(uint32_t);

std::string Body(const HelloFrame& hello) {
  return FieldWriter()
      .Add(hello.magic)
      .Add(hello.version)
      .Add(uint16_t{0})
      .Add(hello.identity.seed)
      .Add(hello.identity.fingerprint)
      .Add(hello.identity.layout)
      .Add(hello.identity.records)
      .Add(hello.identity.nodes)
      .Add(hello.from)
      .Add(hello.to)
      .AddBytes(hello.nonce)
      .Finish();
}
std::string Body(const WelcomeFrame& welcome) {
  return FieldWriter().Add(welcome.version).Add(uint16_t{0}).Add(welcome.node).Add(welcome.incarnation).Finish();
}
std::string Body(const ErrorFrame& error) {
  return FieldWriter().Add(error.code).AddText(std::string_view(error.text).substr(0, kMaxErrorTextBytes)).Finish();
}
std::string Body(const GetFrame& get) { return FieldWriter().Add(get.record).Finish(); }
std::string Body(const RecordFrame& record) { return FieldWriter().Add(record.checksum).Finish(); }
std::string Body(const AbsentFrame& absent) { return FieldWriter().Add(static_cast<uint8_t>(absent.for_good)).Finish(); }
std::string Body(const ChallengeFrame& challenge) {
  return FieldWriter().AddBytes(challenge.nonce).AddBytes(challenge.proof).Finish();
}
std::string Body(const ProofFrame& proof) { return FieldWriter().AddBytes(proof.proof).Finish(); }

Status Malformed(const char* what, std::string_view body) {
  return InvalidArgument("a frame of type {} with {} bytes that does not parse", what, body.size());
}

StatusOr<PartitionMessage> DecodeHello(std::string_view body) {
  FieldReader reader(body);
  HelloFrame hello;
  hello.magic = reader.Get<uint32_t>();
  hello.version = reader.Get<uint16_t>();
  const auto zero = reader.Get<uint16_t>();
  if (reader.failed()) return Malformed("Hello", body);
  if (hello.magic != kPartitionMagic) {
    return InvalidArgument("a Hello with magic {:#010x}; needed: {:#010x}. The peer is no node of a partitioned cache",
                           hello.magic, kPartitionMagic);
  }
  if (hello.version != kPartitionVersion) return hello;
  hello.identity.seed = reader.Get<uint64_t>();
  hello.identity.fingerprint = reader.Get<uint64_t>();
  hello.identity.layout = reader.Get<uint64_t>();
  hello.identity.records = reader.Get<int64_t>();
  hello.identity.nodes = reader.Get<uint32_t>();
  hello.from = reader.Get<uint32_t>();
  hello.to = reader.Get<uint32_t>();
  reader.GetBytes(&hello.nonce);
  if (!reader.Ended() || zero != 0 || hello.identity.records < 0) return Malformed("Hello", body);
  return hello;
}

}  // namespace

std::string EncodeFrame(uint64_t call, const PartitionMessage& message, int64_t record_bytes) {
  return std::visit(
      [&](const auto& each) {
        std::string body = Body(each);
        std::string frame = FieldWriter()
                                .Add(static_cast<uint32_t>(body.size() + static_cast<size_t>(record_bytes)))
                                .Add(std::decay_t<decltype(each)>::kType)
                                .Add(uint16_t{0})
                                .Add(call)
                                .Finish();
        return frame + body;
      },
      message);
}

StatusOr<FrameHeader> DecodeFrameHeader(std::string_view bytes, int64_t max_record_bytes) {
  FieldReader reader(bytes);
  FrameHeader header;
  header.length = reader.Get<uint32_t>();
  header.type = reader.Get<uint16_t>();
  const auto zero = reader.Get<uint16_t>();
  header.call = reader.Get<uint64_t>();
  if (!reader.Ended()) return InvalidArgument("a frame header of {} bytes; needed: {}", bytes.size(), kFrameHeaderBytes);
  if (zero != 0) return InvalidArgument("a frame header with {} where 0 belongs", zero);
  size_t least = 0, most = kMaxControlBytes;
  switch (header.type) {
    case HelloFrame::kType: least = kHelloPrefixBytes; break;
    case WelcomeFrame::kType: least = most = 16; break;
    case ErrorFrame::kType: least = 4, most = 4 + kMaxErrorTextBytes; break;
    case GetFrame::kType: least = most = 8; break;
    case RecordFrame::kType: least = kRecordPrefixBytes, most = kRecordPrefixBytes + static_cast<size_t>(max_record_bytes); break;
    case AbsentFrame::kType: least = most = 1; break;
    case ChallengeFrame::kType: least = most = 64; break;
    case ProofFrame::kType: least = most = 32; break;
    default: return InvalidArgument("a frame of type {}; allowed: {} to {}", header.type, HelloFrame::kType, ProofFrame::kType);
  }
  if (header.length < least || header.length > most) {
    return InvalidArgument("a frame of type {} with {} bytes; allowed: {} to {}", header.type, header.length, least, most);
  }
  return header;
}

StatusOr<PartitionMessage> DecodeFrameBody(uint16_t type, std::string_view body) {
  FieldReader reader(body);
  switch (type) {
    case HelloFrame::kType: return DecodeHello(body);
    case WelcomeFrame::kType: {
      WelcomeFrame welcome;
      welcome.version = reader.Get<uint16_t>();
      const auto zero = reader.Get<uint16_t>();
      welcome.node = reader.Get<uint32_t>();
      welcome.incarnation = reader.Get<uint64_t>();
      if (!reader.Ended() || zero != 0) return Malformed("Welcome", body);
      return welcome;
    }
    case ErrorFrame::kType: {
      ErrorFrame error;
      error.code = reader.Get<uint16_t>();
      error.text = reader.GetText();
      if (!reader.Ended() || error.text.size() > kMaxErrorTextBytes) return Malformed("Error", body);
      return error;
    }
    case GetFrame::kType: {
      GetFrame get;
      get.record = reader.Get<int64_t>();
      if (!reader.Ended() || get.record < 0) return Malformed("Get", body);
      return get;
    }
    case RecordFrame::kType: {
      RecordFrame record;
      record.checksum = reader.Get<uint64_t>();
      if (!reader.Ended()) return Malformed("Record", body);
      return record;
    }
    case AbsentFrame::kType: {
      const auto flag = reader.Get<uint8_t>();
      if (!reader.Ended() || flag > 1) return Malformed("Absent", body);
      return AbsentFrame{.for_good = flag == 1};
    }
    case ChallengeFrame::kType: {
      ChallengeFrame challenge;
      reader.GetBytes(&challenge.nonce);
      reader.GetBytes(&challenge.proof);
      if (!reader.Ended()) return Malformed("Challenge", body);
      return challenge;
    }
    case ProofFrame::kType: {
      ProofFrame proof;
      reader.GetBytes(&proof.proof);
      if (!reader.Ended()) return Malformed("Proof", body);
      return proof;
    }
    default: return InvalidArgument("a frame of type {}; allowed: {} to {}", type, HelloFrame::kType, ProofFrame::kType);
  }
}

std::string HelloBytes(const HelloFrame& hello) { return Body(hello); }

Status CheckHelloVersion(const HelloFrame& hello) {
  if (hello.version == kPartitionVersion) return {};
  return FailedPrecondition(
      "the peer speaks version {} of the cache protocol, this node version {}; run the same release on both", hello.version,
      kPartitionVersion);
}

Status CheckHello(const HelloFrame& hello, const PartitionIdentity& identity, uint32_t node) {
  TIDEPOOL_RETURN_IF_ERROR(CheckHelloVersion(hello));
  const auto differs = [node](const char* what, uint64_t theirs, uint64_t ours) {
    return FailedPrecondition("the peer has {} {}, node {} has {}", what, theirs, node, ours);
  };
  const PartitionIdentity& theirs = hello.identity;
  if (theirs.nodes != identity.nodes) return differs("a number of nodes of", theirs.nodes, identity.nodes);
  if (theirs.seed != identity.seed) return differs("seed", theirs.seed, identity.seed);
  if (theirs.records != identity.records) {
    return differs("a number of records of", static_cast<uint64_t>(theirs.records), static_cast<uint64_t>(identity.records));
  }
  if (theirs.fingerprint != identity.fingerprint)
    return differs("data with fingerprint", theirs.fingerprint, identity.fingerprint);
  if (theirs.layout != identity.layout) return differs("groups with fingerprint", theirs.layout, identity.layout);
  if (hello.to != node) return FailedPrecondition("the peer wants node {}, this is node {}", hello.to, node);
  if (hello.from >= identity.nodes || hello.from == node) {
    return FailedPrecondition("the peer says that it is node {}; allowed: 0 to {}, without {}", hello.from, identity.nodes - 1,
                              node);
  }
  return {};
}

ErrorFrame ToErrorFrame(const Status& status) {
  return {.code = static_cast<uint16_t>(status.code()), .text = MessageOf(status).substr(0, kMaxErrorTextBytes)};
}

Status ToStatus(const ErrorFrame& error) {
  if (error.code == 0 || error.code > static_cast<uint16_t>(StatusCode::kUnauthenticated)) {
    return Internal("the peer failed with code {}: {}", error.code, error.text);
  }
  return Status(static_cast<StatusCode>(error.code), error.text);
}

uint64_t RecordChecksum(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace tidepool::data
