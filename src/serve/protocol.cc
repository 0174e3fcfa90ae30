#include "serve/protocol.h"

#include <algorithm>

namespace tidepool::serve {
namespace {

enum class Type : uint16_t {
  kHello = 1,
  kLoad = 2,
  kCancel = 3,
  kUnload = 4,
  kExecute = 5,
  kShutdown = 6,
  kHelloReply = 101,
  kLoadDone = 102,
  kUnloadDone = 103,
  kExecuteDone = 104,
  kWorkspace = 105,
};

class Writer {
 public:
  Writer(Type type, JobId job) {
    U32(kProtocolMagic);
    U16(kProtocolVersion);
    U16(static_cast<uint16_t>(type));
    U64(job.value());
  }
  void U16(uint16_t value) { Little(value, 2); }
  void U32(uint32_t value) { Little(value, 4); }
  void U64(uint64_t value) { Little(value, 8); }
  void I64(int64_t value) { Little(static_cast<uint64_t>(value), 8); }
  void Text(std::string_view text) {
    text = text.substr(0, kMaxProtocolString);
    U16(static_cast<uint16_t>(text.size()));
    data_.append(text);
  }
  void Result(const Status& status) {
    U32(static_cast<uint32_t>(status.code()));
    Text(MessageOf(status));
  }
  void Ranges(const std::vector<SlabRange>& ranges) {
    U16(static_cast<uint16_t>(ranges.size()));
    for (const SlabRange& range : ranges) {
      U64(range.offset);
      U64(range.size);
    }
  }
  std::string Take() { return std::move(data_); }

 private:
  void Little(uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) data_.push_back(static_cast<char>(value >> (8 * i)));
  }
  std::string data_;
};

// The first fault sticks; what is read after it is zero.
class Reader {
 public:
  explicit Reader(std::string_view data) : data_(data) {}
  uint16_t U16() { return static_cast<uint16_t>(Little(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Little(4)); }
  uint64_t U64() { return Little(8); }
  int64_t Count(const char* what) {  // an amount of something: never negative
    const int64_t value = static_cast<int64_t>(Little(8));
    if (value < 0) Fail(InvalidArgument("{} is {}; allowed: 0 or more", what, value));
    return fault_.ok() ? value : 0;
  }
  std::string Text(const char* what) {
    const size_t size = U16();
    if (size > kMaxProtocolString) {
      Fail(InvalidArgument("{} has {} bytes; allowed: up to {}", what, size, kMaxProtocolString));
      return {};
    }
    return std::string(Take(size));
  }
  Status Result() {
    const uint32_t code = U32();
    std::string text = Text("an error text");
    if (code > static_cast<uint32_t>(StatusCode::kUnauthenticated)) {
      Fail(InvalidArgument("status code {} is unknown; allowed: 0 to 16", code));
      return {};
    }
    return code == 0 ? Status() : Status(static_cast<StatusCode>(code), text);
  }
  std::vector<SlabRange> Ranges(const char* what) {
    const int count = U16();
    if (count > kMaxProtocolTensors) {
      Fail(InvalidArgument("{} {}; allowed: up to {}", count, what, kMaxProtocolTensors));
      return {};
    }
    std::vector<SlabRange> ranges(static_cast<size_t>(count));
    for (SlabRange& range : ranges) range = {U64(), U64()};
    return ranges;
  }
  void Fail(Status status) {
    if (fault_.ok()) fault_ = std::move(status);
  }
  Status Finish() {
    if (fault_.ok() && !data_.empty()) Fail(InvalidArgument("{} bytes follow the end of the message", data_.size()));
    return fault_;
  }
  const Status& fault() const { return fault_; }

 private:
  std::string_view Take(size_t size) {
    if (!fault_.ok()) return {};
    if (data_.size() < size) {
      Fail(InvalidArgument("the message ends early: {} bytes are missing", size - data_.size()));
      return {};
    }
    const std::string_view part = data_.substr(0, size);
    data_.remove_prefix(size);
    return part;
  }
  uint64_t Little(size_t bytes) {
    const std::string_view part = Take(bytes);
    uint64_t value = 0;
    for (size_t i = 0; i < part.size(); ++i) value |= uint64_t{static_cast<unsigned char>(part[i])} << (8 * i);
    return value;
  }
  std::string_view data_;
  Status fault_;
};

struct Encoder {
  std::string operator()(const HelloMessage& m) {
    Writer w(Type::kHello, JobId());
    w.U64(m.slab_bytes);
    return w.Take();
  }
  std::string operator()(const LoadMessage& m) {
    Writer w(Type::kLoad, m.job);
    w.Text(m.name);
    w.Text(m.spec);
    w.Text(m.path);
    w.I64(m.grow_slack_ns);
    w.I64(m.limit_ns);
    w.U32(m.direct_io ? 1 : 0);
    return w.Take();
  }
  std::string operator()(const CancelMessage& m) { return Writer(Type::kCancel, m.job).Take(); }
  std::string operator()(const UnloadMessage& m) {
    Writer w(Type::kUnload, m.job);
    w.U64(m.instance.value());
    return w.Take();
  }
  std::string operator()(const ExecuteMessage& m) {
    Writer w(Type::kExecute, m.job);
    w.U64(m.instance.value());
    w.U32(m.batch);
    w.Ranges(m.inputs);
    w.Ranges(m.outputs);
    return w.Take();
  }
  std::string operator()(const ShutdownMessage&) { return Writer(Type::kShutdown, JobId()).Take(); }
  std::string operator()(const HelloReplyMessage& m) {
    Writer w(Type::kHelloReply, JobId());
    w.U32(static_cast<uint32_t>(m.pid));
    w.Text(m.runtime);
    return w.Take();
  }
  std::string operator()(const LoadDoneMessage& m) {
    Writer w(Type::kLoadDone, m.job);
    w.Result(m.status);
    for (int64_t value : {m.pages, m.bytes, m.grow_ns, m.read_ns, m.total_ns}) w.I64(value);
    return w.Take();
  }
  std::string operator()(const UnloadDoneMessage& m) {
    Writer w(Type::kUnloadDone, m.job);
    w.Result(m.status);
    w.I64(m.freed_bytes);
    return w.Take();
  }
  std::string operator()(const ExecuteDoneMessage& m) {
    Writer w(Type::kExecuteDone, m.job);
    w.Result(m.status);
    w.I64(m.start_ns);
    w.I64(m.end_ns);
    w.U32(m.pieces);
    w.I64(m.workspace_pages);
    w.I64(m.workspace_peak_pages);
    return w.Take();
  }
  std::string operator()(const WorkspaceMessage& m) {
    Writer w(Type::kWorkspace, JobId());
    w.I64(m.pages);
    return w.Take();
  }
};

Message ReadBody(Type type, JobId job, Reader& r) {
  switch (type) {
    case Type::kHello: return HelloMessage{.slab_bytes = static_cast<uint64_t>(r.Count("the slab's size"))};
    case Type::kLoad: {
      LoadMessage m{.job = job};
      m.name = r.Text("a model's name");
      m.spec = r.Text("a model's spec");
      m.path = r.Text("a path");
      m.grow_slack_ns = r.Count("the slack");
      m.limit_ns = r.Count("the limit of a load");
      m.direct_io = r.U32() != 0;
      return m;
    }
    case Type::kCancel: return CancelMessage{.job = job};
    case Type::kUnload: return UnloadMessage{.job = job, .instance = JobId(r.U64())};
    case Type::kExecute: {
      ExecuteMessage m{.job = job};
      m.instance = JobId(r.U64());
      m.batch = r.U32();
      m.inputs = r.Ranges("inputs");
      m.outputs = r.Ranges("outputs");
      return m;
    }
    case Type::kShutdown: return ShutdownMessage{};
    case Type::kHelloReply: {
      HelloReplyMessage m;
      m.pid = static_cast<int32_t>(r.U32());
      m.runtime = r.Text("the runtime's description");
      return m;
    }
    case Type::kLoadDone: {
      LoadDoneMessage m{.job = job, .status = r.Result()};
      m.pages = r.Count("a number of pages");
      m.bytes = r.Count("a number of bytes");
      m.grow_ns = r.Count("a duration");
      m.read_ns = r.Count("a duration");
      m.total_ns = r.Count("a duration");
      return m;
    }
    case Type::kUnloadDone: {
      UnloadDoneMessage m{.job = job, .status = r.Result()};
      m.freed_bytes = r.Count("a number of bytes");
      return m;
    }
    case Type::kExecuteDone: {
      ExecuteDoneMessage m{.job = job, .status = r.Result()};
      m.start_ns = r.Count("a stamp");
      m.end_ns = r.Count("a stamp");
      m.pieces = r.U32();
      m.workspace_pages = r.Count("a number of pages");
      m.workspace_peak_pages = r.Count("a number of pages");
      return m;
    }
    case Type::kWorkspace: return WorkspaceMessage{.pages = r.Count("a number of pages")};
  }
  r.Fail(InvalidArgument("message type {} is unknown", static_cast<int>(type)));
  return ShutdownMessage{};
}

}  // namespace

Status CheckRange(const SlabRange& range, int64_t slab_bytes) {
  const uint64_t limit = static_cast<uint64_t>(slab_bytes);
  if (range.offset % kSlabAlignment != 0 || range.offset > limit || range.size > limit - range.offset) {
    return InvalidArgument(
        "slab range at {} of {} bytes is outside the slab or misaligned; allowed: multiples of {} inside {} bytes", range.offset,
        range.size, kSlabAlignment, limit);
  }
  return {};
}

std::string Encode(const Message& message) { return std::visit(Encoder(), message); }

StatusOr<Message> Decode(std::string_view data) {
  Reader reader(data);
  const uint32_t magic = reader.U32();
  const uint16_t version = reader.U16();
  const uint16_t type = reader.U16();
  const JobId job(reader.U64());
  TIDEPOOL_RETURN_IF_ERROR(reader.fault());
  if (magic != kProtocolMagic) return InvalidArgument("the message starts with {:#x}; allowed: {:#x}", magic, kProtocolMagic);
  if (version != kProtocolVersion) {
    return FailedPrecondition(
        "the peer speaks version {} of the serving channel, this program version {}; use one build for both", version,
        kProtocolVersion);
  }
  Message message = ReadBody(static_cast<Type>(type), job, reader);
  TIDEPOOL_RETURN_IF_ERROR(Annotate(reader.Finish(), fmt::format("message of type {}", type)));
  return message;
}

}  // namespace tidepool::serve
