#include "data/shared_prep_protocol.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/units.h"
#include "data/cache_wire.h"

namespace tidepool::data {
namespace {

constexpr int64_t kMostSampleBytes = int64_t{1} << 32;
constexpr int64_t kMostBatch = 1 << 20;
constexpr int64_t kMostSlotBytes = int64_t{1} << 40;
constexpr int64_t kAlignment = 64, kPageBytes = 4096;

void Write(FieldWriter* out, const JoinPacket& join) {
  const PrepPlan& plan = join.plan;
  out->Add(join.magic).Add(join.version).Add(uint16_t{0});
  out->Add(plan.fingerprint).Add(plan.settings).Add(plan.seed).Add(plan.samples).Add(plan.batch).Add(plan.epochs);
  out->Add(plan.input_bytes).Add(plan.target_bytes).Add(static_cast<uint8_t>(plan.drop_last));
  out->AddText(std::string_view(join.name).substr(0, kMaxPrepNameBytes));
}
void Write(FieldWriter* out, const JoinedPacket& joined) {
  out->Add(joined.job).Add(joined.first).Add(joined.slots).Add(joined.held);
}
void Write(FieldWriter* out, const ErrorPacket& error) {
  out->Add(error.code).AddText(std::string_view(error.text).substr(0, kMaxPrepTextBytes));
}
void Write(FieldWriter*, const WantPacket&) {}
void Write(FieldWriter* out, const LeasePacket& lease) { out->Add(lease.token).Add(lease.number).Add(lease.slot); }
void Write(FieldWriter* out, const DonePacket& done) {
  out->Add(done.token).Add(done.samples).Add(done.replaced).Add(done.code);
  out->AddText(std::string_view(done.text).substr(0, kMaxPrepTextBytes));
}
void Write(FieldWriter*, const TakePacket&) {}
void Write(FieldWriter* out, const BatchPacket& batch) {
  out->Add(batch.number).Add(batch.slot).Add(batch.samples).Add(batch.replaced).Add(batch.code);
  out->AddText(std::string_view(batch.text).substr(0, kMaxPrepTextBytes));
}
void Write(FieldWriter* out, const ReleasePacket& release) { out->Add(release.number); }
void Write(FieldWriter*, const EndPacket&) {}
void Write(FieldWriter*, const ByePacket&) {}

Status ReadJoin(FieldReader* in, PrepMessage* message) {
  JoinPacket join;
  join.magic = in->Get<uint32_t>();
  join.version = in->Get<uint16_t>();
  const auto zero = in->Get<uint16_t>();
  if (in->failed()) return InvalidArgument("a Join that is cut short");
  if (join.magic != kPrepMagic) {
    return InvalidArgument("a Join with magic {:#010x}; needed: {:#010x}. The peer is no job of shared preparation", join.magic,
                           kPrepMagic);
  }
  if (join.version == kPrepVersion) {
    PrepPlan& plan = join.plan;
    plan.fingerprint = in->Get<uint64_t>();
    plan.settings = in->Get<uint64_t>();
    plan.seed = in->Get<uint64_t>();
    plan.samples = in->Get<int64_t>();
    plan.batch = in->Get<int64_t>();
    plan.epochs = in->Get<int64_t>();
    plan.input_bytes = in->Get<int64_t>();
    plan.target_bytes = in->Get<int64_t>();
    const auto flags = in->Get<uint8_t>();
    plan.drop_last = flags == 1;
    join.name = in->GetText();
    if (!in->Ended() || zero != 0 || flags > 1 || join.name.size() > kMaxPrepNameBytes) {
      return InvalidArgument("a Join that does not parse");
    }
  }
  *message = std::move(join);
  return {};
}

// Whether the fields are in range.
bool Read(FieldReader* in, JoinedPacket* joined) {
  joined->job = in->Get<uint32_t>();
  joined->first = in->Get<int64_t>();
  joined->slots = in->Get<uint32_t>();
  joined->held = in->Get<uint32_t>();
  return joined->first >= 0 && joined->slots <= 65536 && joined->held >= 1 && joined->held <= joined->slots;
}
bool Read(FieldReader* in, ErrorPacket* error) {
  error->code = in->Get<uint16_t>();
  error->text = in->GetText();
  return error->code != 0 && error->text.size() <= kMaxPrepTextBytes;
}
bool Read(FieldReader*, WantPacket*) { return true; }
bool Read(FieldReader* in, LeasePacket* lease) {
  lease->token = in->Get<uint64_t>();
  lease->number = in->Get<int64_t>();
  lease->slot = in->Get<uint32_t>();
  return lease->number >= 0;
}
bool Read(FieldReader* in, DonePacket* done) {
  done->token = in->Get<uint64_t>();
  done->samples = in->Get<int64_t>();
  done->replaced = in->Get<int64_t>();
  done->code = in->Get<uint16_t>();
  done->text = in->GetText();
  return done->samples >= 0 && done->replaced >= 0 && done->replaced <= done->samples && done->text.size() <= kMaxPrepTextBytes;
}
bool Read(FieldReader*, TakePacket*) { return true; }
bool Read(FieldReader* in, BatchPacket* batch) {
  batch->number = in->Get<int64_t>();
  batch->slot = in->Get<uint32_t>();
  batch->samples = in->Get<int64_t>();
  batch->replaced = in->Get<int64_t>();
  batch->code = in->Get<uint16_t>();
  batch->text = in->GetText();
  return batch->number >= 0 && batch->samples >= 0 && batch->replaced >= 0 && batch->text.size() <= kMaxPrepTextBytes;
}
bool Read(FieldReader* in, ReleasePacket* release) {
  release->number = in->Get<int64_t>();
  return release->number >= 0;
}
bool Read(FieldReader*, EndPacket*) { return true; }
bool Read(FieldReader*, ByePacket*) { return true; }

template <typename Packet>
Status ReadAs(FieldReader* in, PrepMessage* message) {
  Packet packet;
  if (!Read(in, &packet) || !in->Ended()) return InvalidArgument("a packet of type {} that does not parse", Packet::kType);
  *message = std::move(packet);
  return {};
}

}  // namespace

Status PrepPlan::Validate() const {
  if (samples < 1) return InvalidArgument("{} samples; allowed: 1 or more", samples);
  if (batch < 1 || batch > kMostBatch) return InvalidArgument("batches of {}; allowed: 1 to {}", batch, kMostBatch);
  if (batches() < 1) return InvalidArgument("batches of {} with drop_last and {} samples: there is none", batch, samples);
  if (epochs < -1 || epochs == 0) return InvalidArgument("{} epochs; allowed: 1 or more, or -1 for no end", epochs);
  if (epochs > std::numeric_limits<int64_t>::max() / samples) return InvalidArgument("{} epochs are too many", epochs);
  for (const int64_t bytes : {input_bytes, target_bytes}) {
    if (bytes < 0 || bytes > kMostSampleBytes) {
      return InvalidArgument("a sample of {} bytes; allowed: 0 to {}", bytes, kMostSampleBytes);
    }
  }
  if ((input_bytes + target_bytes + 8) > kMostSlotBytes / batch) {
    return InvalidArgument("batches of {} samples of {} bytes; allowed: {} in all", batch, input_bytes + target_bytes,
                           FormatBytes(kMostSlotBytes));
  }
  return {};
}

int64_t PrepPlan::targets_at() const { return RoundUp(batch * input_bytes, kAlignment); }
int64_t PrepPlan::numbers_at() const { return RoundUp(targets_at() + batch * target_bytes, kAlignment); }
int64_t PrepPlan::slot_bytes() const { return RoundUp(numbers_at() + batch * 8, kPageBytes); }

Status CheckPlan(const PrepPlan& theirs, const PrepPlan& ours) {
  const auto differs = [](const char* what, auto their_value, auto our_value) {
    return FailedPrecondition("the job has {} {}, the jobs that came first have {}", what, their_value, our_value);
  };
  if (theirs.samples != ours.samples) return differs("a number of samples of", theirs.samples, ours.samples);
  if (theirs.fingerprint != ours.fingerprint) return differs("data with fingerprint", theirs.fingerprint, ours.fingerprint);
  if (theirs.seed != ours.seed) return differs("seed", theirs.seed, ours.seed);
  if (theirs.batch != ours.batch) return differs("batches of", theirs.batch, ours.batch);
  if (theirs.drop_last != ours.drop_last) return differs("drop_last", theirs.drop_last, ours.drop_last);
  if (theirs.epochs != ours.epochs) return differs("a number of epochs of", theirs.epochs, ours.epochs);
  if (theirs.input_bytes != ours.input_bytes) return differs("inputs of bytes", theirs.input_bytes, ours.input_bytes);
  if (theirs.target_bytes != ours.target_bytes) return differs("targets of bytes", theirs.target_bytes, ours.target_bytes);
  if (theirs.settings != ours.settings) {
    return differs("settings (decoding, order, augmentation, broken samples) with hash", theirs.settings, ours.settings);
  }
  return {};
}

std::string EncodePrep(const PrepMessage& message) {
  return std::visit(
      [](const auto& packet) {
        FieldWriter out;
        out.Add(std::decay_t<decltype(packet)>::kType).Add(uint16_t{0});
        Write(&out, packet);
        return out.Finish();
      },
      message);
}

StatusOr<PrepMessage> DecodePrep(std::string_view packet) {
  FieldReader in(packet);
  const auto type = in.Get<uint16_t>();
  const auto zero = in.Get<uint16_t>();
  if (in.failed()) return InvalidArgument("a packet of {} bytes; needed: 4 or more", packet.size());
  if (zero != 0) return InvalidArgument("a packet with {} where 0 belongs", zero);
  PrepMessage message;
  Status status;
  switch (type) {
    case JoinPacket::kType: status = ReadJoin(&in, &message); break;
    case JoinedPacket::kType: status = ReadAs<JoinedPacket>(&in, &message); break;
    case ErrorPacket::kType: status = ReadAs<ErrorPacket>(&in, &message); break;
    case WantPacket::kType: status = ReadAs<WantPacket>(&in, &message); break;
    case LeasePacket::kType: status = ReadAs<LeasePacket>(&in, &message); break;
    case DonePacket::kType: status = ReadAs<DonePacket>(&in, &message); break;
    case TakePacket::kType: status = ReadAs<TakePacket>(&in, &message); break;
    case BatchPacket::kType: status = ReadAs<BatchPacket>(&in, &message); break;
    case ReleasePacket::kType: status = ReadAs<ReleasePacket>(&in, &message); break;
    case EndPacket::kType: status = ReadAs<EndPacket>(&in, &message); break;
    case ByePacket::kType: status = ReadAs<ByePacket>(&in, &message); break;
    default: return InvalidArgument("a packet of type {}; allowed: {} to {}", type, JoinPacket::kType, ByePacket::kType);
  }
  if (!status.ok()) return status;
  return message;
}

ErrorPacket ToErrorPacket(const Status& status) {
  return {.code = static_cast<uint16_t>(status.code()), .text = MessageOf(status).substr(0, kMaxPrepTextBytes)};
}

Status ToPrepStatus(uint16_t code, const std::string& text) {
  if (code == 0) return {};
  if (code > static_cast<uint16_t>(StatusCode::kUnauthenticated)) return Internal("code {}: {}", code, text);
  return Status(static_cast<StatusCode>(code), text);
}

}  // namespace tidepool::data
