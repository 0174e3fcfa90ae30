#include "pool/protocol.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace tidepool::pool {
namespace {

constexpr size_t kHeaderBytes = 8;

class Writer {
 public:
  Writer(uint16_t type, uint32_t call) {
    Number(type);
    Number(uint16_t{0});
    Number(call);
  }
  template <typename T>
  void Number(T value) {
    using Bits = std::make_unsigned_t<T>;
    auto bits = static_cast<Bits>(value);
    for (size_t i = 0; i < sizeof(T); ++i) {
      data_.push_back(static_cast<char>(static_cast<uint8_t>(bits)));
      if constexpr (sizeof(T) > 1) bits = static_cast<Bits>(bits >> 8);
    }
  }
  void Flag(bool value) { Number(static_cast<uint8_t>(value ? 1 : 0)); }
  template <typename E>
  void Enum(E value) {
    Number(static_cast<uint8_t>(value));
  }
  template <typename Id>
  void Identity(Id id) {
    Number(id.value());
  }
  void Text(std::string_view text, size_t limit) {
    text = text.substr(0, limit);
    Number(static_cast<uint16_t>(text.size()));
    data_.append(text);
  }
  void Extents(const std::vector<Extent>& extents) {
    Number(static_cast<uint32_t>(extents.size()));
    for (const Extent& extent : extents) {
      Number(extent.first);
      Number(extent.count);
    }
  }
  std::string Take() { return std::move(data_); }

 private:
  std::string data_;
};

// Reads fields; the first fault stays, and everything read after it is zero.
class Reader {
 public:
  explicit Reader(std::string_view data) : data_(data), total_(data.size()) {}

  template <typename T>
  void Number(T* value) {
    *value = 0;
    if (data_.size() < sizeof(T)) return Fault("ends in the middle of a field");
    using Bits = std::make_unsigned_t<T>;
    Bits bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
      bits = static_cast<Bits>(bits | static_cast<Bits>(static_cast<Bits>(static_cast<uint8_t>(data_[i])) << (8 * i)));
    *value = static_cast<T>(bits);
    data_.remove_prefix(sizeof(T));
  }
  void Flag(bool* value) {
    uint8_t byte = 0;
    Number(&byte);
    if (byte > 1) Fault("has a flag that is neither 0 nor 1");
    *value = byte == 1;
  }
  template <typename E>
  void Enum(E* value, E last) {
    uint8_t byte = 0;
    Number(&byte);
    if (byte > static_cast<uint8_t>(last)) {
      Fault("has an unknown enumerator");
      byte = 0;
    }
    *value = static_cast<E>(byte);
  }
  template <typename Id>
  void Identity(Id* id) {
    typename Id::rep value = 0;
    Number(&value);
    *id = Id(value);
  }
  void Text(std::string* text, size_t limit) {
    uint16_t size = 0;
    Number(&size);
    if (size > limit) return Fault("has a text that is too long");
    if (size > data_.size()) return Fault("ends in the middle of a text");
    *text = data_.substr(0, size);
    data_.remove_prefix(size);
  }
  void Extents(std::vector<Extent>* extents) {
    uint32_t count = 0;
    Number(&count);
    if (count > kMaxMessageExtents) return Fault("has too many extents");
    if (count * size_t{8} > data_.size()) return Fault("ends in the middle of its extents");
    extents->resize(count);
    for (Extent& extent : *extents) {
      Number(&extent.first);
      Number(&extent.count);
    }
  }
  void SkipRest() { data_ = {}; }
  void Fault(const char* what) {
    if (fault_ == nullptr) fault_ = what;
    data_ = {};
  }
  Status Finish(std::string_view name) const {
    if (fault_ != nullptr) return InvalidArgument("{} message of {} bytes {}", name, total_, fault_);
    if (!data_.empty()) return InvalidArgument("{} message of {} bytes has {} bytes too many", name, total_, data_.size());
    return {};
  }

 private:
  std::string_view data_;
  size_t total_;
  const char* fault_ = nullptr;
};

// One list of fields per message, used for writing (C = const message) and for reading.
template <typename IO, typename Options>
void LeaseFields(IO& io, Options& options) {
  io.Enum(options.lease_class, LeaseClass::kReclaimable);
  io.Enum(options.placement, Placement::kHigh);
  io.Number(options.guaranteed_pages);
  io.Number(options.burst_pages);
  io.Text(options.name, kMaxNameBytes);
  io.Text(options.trust_label, kMaxNameBytes);
}

// Gives Writer the interface of the field lists.
struct WriteFields {
  Writer& writer;
  template <typename T>
  void Number(const T& value) {
    writer.Number(value);
  }
  void Flag(const bool& value) { writer.Flag(value); }
  template <typename E>
  void Enum(const E& value, E) {
    writer.Enum(value);
  }
  template <typename Id>
  void Identity(const Id& id) {
    writer.Identity(id);
  }
  void Text(const std::string& text, size_t limit) { writer.Text(text, limit); }
  void Extents(const std::vector<Extent>& extents) { writer.Extents(extents); }
};

struct ReadFields {
  Reader& reader;
  template <typename T>
  void Number(T& value) {
    reader.Number(&value);
  }
  void Flag(bool& value) { reader.Flag(&value); }
  template <typename E>
  void Enum(E& value, E last) {
    reader.Enum(&value, last);
  }
  template <typename Id>
  void Identity(Id& id) {
    reader.Identity(&id);
  }
  void Text(std::string& text, size_t limit) { reader.Text(&text, limit); }
  void Extents(std::vector<Extent>& extents) { reader.Extents(&extents); }
};

template <typename T, typename M>
constexpr bool kIs = std::is_same_v<std::remove_const_t<T>, M>;

template <typename IO, typename M>
void Fields(IO& io, M& m) {
  if constexpr (kIs<M, HelloMessage>) {
    io.Number(m.magic), io.Number(m.version), io.Text(m.name, kMaxNameBytes);
  } else if constexpr (kIs<M, WelcomeMessage>) {
    io.Number(m.version), io.Flag(m.paused), io.Enum(m.mapping, device::MappingMode::kStrict);
    io.Number(m.capacity_bytes), io.Number(m.page_bytes);
    io.Text(m.device_name, kMaxNameBytes), io.Text(m.device_kind, kMaxNameBytes);
  } else if constexpr (kIs<M, StatusMessage>) {
    io.Number(m.code), io.Text(m.text, kMaxStatusBytes);
  } else if constexpr (kIs<M, OpenLeaseMessage>) {
    LeaseFields(io, m.options);
  } else if constexpr (kIs<M, LeaseOpenedMessage> || kIs<M, LimitMessage>) {
    io.Identity(m.lease), io.Number(m.limit_pages);
  } else if constexpr (kIs<M, CloseLeaseMessage>) {
    io.Identity(m.lease);
  } else if constexpr (kIs<M, GrowMessage>) {
    io.Identity(m.lease), io.Number(m.pages), io.Number(m.min_run_pages), io.Number(m.timeout_ns);
  } else if constexpr (kIs<M, GrantedMessage> || kIs<M, ReturnMessage>) {
    io.Identity(m.lease), io.Extents(m.extents);
  } else if constexpr (kIs<M, SetGuaranteedMessage> || kIs<M, SetPreferredMessage>) {
    io.Identity(m.lease), io.Number(m.pages);
  } else if constexpr (kIs<M, RevokeMessage>) {
    io.Identity(m.lease), io.Identity(m.demand), io.Number(m.limit_pages), io.Number(m.slack_ns);
  } else if constexpr (kIs<M, FinishRevokeMessage>) {
    io.Identity(m.lease), io.Identity(m.demand), io.Number(m.received_ns);
    io.Number(m.cached_ns), io.Number(m.wait_ns), io.Number(m.unwind_ns), io.Number(m.give_back_ns);
    io.Flag(m.aborted), io.Flag(m.boundary);
  } else if constexpr (kIs<M, PausedMessage>) {
    io.Flag(m.paused);
  } else {
    static_assert(kIs<M, DetachMessage>);
  }
}

template <typename M>
constexpr std::string_view NameOfType() {
  if constexpr (kIs<M, HelloMessage>) return "Hello";
  if constexpr (kIs<M, WelcomeMessage>) return "Welcome";
  if constexpr (kIs<M, StatusMessage>) return "Status";
  if constexpr (kIs<M, OpenLeaseMessage>) return "OpenLease";
  if constexpr (kIs<M, LeaseOpenedMessage>) return "LeaseOpened";
  if constexpr (kIs<M, CloseLeaseMessage>) return "CloseLease";
  if constexpr (kIs<M, GrowMessage>) return "Grow";
  if constexpr (kIs<M, GrantedMessage>) return "Granted";
  if constexpr (kIs<M, ReturnMessage>) return "Return";
  if constexpr (kIs<M, SetGuaranteedMessage>) return "SetGuaranteed";
  if constexpr (kIs<M, RevokeMessage>) return "Revoke";
  if constexpr (kIs<M, FinishRevokeMessage>) return "FinishRevoke";
  if constexpr (kIs<M, LimitMessage>) return "Limit";
  if constexpr (kIs<M, PausedMessage>) return "Paused";
  if constexpr (kIs<M, DetachMessage>) return "Detach";
  if constexpr (kIs<M, SetPreferredMessage>) return "SetPreferred";
}

template <typename M>
StatusOr<Message> DecodeAs(Reader& reader) {
  M message;
  ReadFields io{reader};
  if constexpr (std::is_same_v<M, HelloMessage>) {
    reader.Number(&message.magic);
    reader.Number(&message.version);
    if (message.magic != kProtocolMagic) reader.Fault("does not start with the protocol's magic number");
    if (message.version == kProtocolVersion) {
      reader.Text(&message.name, kMaxNameBytes);
    } else {
      reader.SkipRest();
    }
  } else {
    Fields(io, message);
  }
  TIDEPOOL_RETURN_IF_ERROR(reader.Finish(NameOfType<M>()));
  return Message(std::move(message));
}

template <size_t I = 0>
StatusOr<Message> DecodeType(uint16_t type, Reader& reader) {
  if constexpr (I == std::variant_size_v<Message>) {
    return Unimplemented("message type {} is unknown; allowed: 1 to {}", type, std::variant_size_v<Message>);
  } else {
    using M = std::variant_alternative_t<I, Message>;
    return type == M::kType ? DecodeAs<M>(reader) : DecodeType<I + 1>(type, reader);
  }
}

}  // namespace

bool operator==(const OpenLeaseMessage& a, const OpenLeaseMessage& b) {
  return a.options.name == b.options.name && a.options.lease_class == b.options.lease_class &&
         a.options.guaranteed_pages == b.options.guaranteed_pages && a.options.burst_pages == b.options.burst_pages &&
         a.options.placement == b.options.placement && a.options.trust_label == b.options.trust_label;
}

std::string Encode(uint32_t call, const Message& message) {
  return std::visit(
      [call](const auto& body) {
        Writer writer(std::decay_t<decltype(body)>::kType, call);
        WriteFields io{writer};
        Fields(io, body);
        return writer.Take();
      },
      message);
}

StatusOr<Envelope> Decode(std::string_view packet) {
  if (packet.size() < kHeaderBytes)
    return InvalidArgument("message of {} bytes; allowed: {} or more", packet.size(), kHeaderBytes);
  Reader header(packet.substr(0, kHeaderBytes));
  uint16_t type = 0, zero = 0;
  Envelope envelope;
  header.Number(&type);
  header.Number(&zero);
  header.Number(&envelope.call);
  if (zero != 0) return InvalidArgument("message of type {} has {} in bytes 2 and 3; allowed: 0", type, zero);
  Reader body(packet.substr(kHeaderBytes));
  TIDEPOOL_ASSIGN_OR_RETURN(envelope.message, DecodeType(type, body));
  return envelope;
}

uint32_t CallOf(std::string_view packet) {
  if (packet.size() < kHeaderBytes) return 0;
  Reader reader(packet.substr(4, 4));
  uint32_t call = 0;
  reader.Number(&call);
  return call;
}

std::string_view NameOf(const Message& message) {
  return std::visit([](const auto& body) { return NameOfType<std::decay_t<decltype(body)>>(); }, message);
}

StatusMessage ToMessage(const Status& status) {
  return {.code = static_cast<uint16_t>(status.code()), .text = MessageOf(status).substr(0, kMaxStatusBytes)};
}

Status ToStatus(const StatusMessage& message) {
  if (message.code == 0) return {};
  // A code that this side does not know is still an error.
  const bool known = message.code <= static_cast<uint16_t>(StatusCode::kUnauthenticated);
  return Status(known ? static_cast<StatusCode>(message.code) : StatusCode::kUnknown, message.text);
}

}  // namespace tidepool::pool
