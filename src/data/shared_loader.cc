#include "data/shared_loader.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/fd.h"
#include "base/unix_socket.h"
#include "data/extent_source.h"
#include "data/shared_prep_protocol.h"

namespace tidepool::data {
namespace {

constexpr absl::Duration kSendLimit = absl::Seconds(10);
constexpr size_t kMostErrors = 64;

absl::Time Now() { return Clock::Real()->Now(); }

uint64_t SettingsOf(const SharedLoaderOptions& options) {
  Fingerprint fingerprint;
  fingerprint.Add(options.shuffle ? 1 : 0);
  fingerprint.Add(options.shuffle ? options.window_groups : 0);
  fingerprint.Add(options.augment ? 1 : 0);
  fingerprint.Add(static_cast<int64_t>(options.on_error));
  fingerprint.Add(options.on_error == OnError::kReplace ? options.max_replacements : 0);
  fingerprint.Add(static_cast<int64_t>(options.decoding));
  return fingerprint.value();
}

// A mapping of the staging memory. Thread-compatible.
class Mapping {
 public:
  static StatusOr<std::unique_ptr<Mapping>> Map(int fd, int64_t bytes, int protection) {
    void* memory = ::mmap(nullptr, static_cast<size_t>(bytes), protection, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return ErrnoError(errno, fmt::format("mapping {} bytes of staging memory", bytes));
    return std::unique_ptr<Mapping>(new Mapping(static_cast<std::byte*>(memory), bytes));
  }
  ~Mapping() { ::munmap(memory_, static_cast<size_t>(bytes_)); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::byte* at(int64_t offset) const { return memory_ + offset; }

 private:
  Mapping(std::byte* memory, int64_t bytes) : memory_(memory), bytes_(bytes) {}
  std::byte* const memory_;
  const int64_t bytes_;
};

}  // namespace

Status SharedLoaderOptions::Validate() const {
  if (threads < 1 || threads > 256) return InvalidArgument("{} preparing threads; allowed: 1 to 256", threads);
  if (window_groups < 0) return InvalidArgument("window_groups {}; allowed: 0 or more", window_groups);
  if (max_replacements < 1) return InvalidArgument("max_replacements {}; allowed: 1 or more", max_replacements);
  return {};
}

// What the loader and the batches in the caller's hands share: the connection stays as long as one of them lives, because its end
// tells the coordinator that nobody looks at the memory any more.
class SharedLoader::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(const Dataset* dataset, SharedLoaderOptions options, PrepPlan plan, PacketSocket socket)
      : dataset_(*dataset),
        options_(std::move(options)),
        plan_(plan),
        reader_(dataset,
                {.seed = options_.seed,
                 .shuffle = options_.shuffle,
                 .window_groups = options_.window_groups,
                 .augment = options_.augment,
                 .on_error = options_.on_error,
                 .max_replacements = options_.max_replacements,
                 .read_ahead = 0},
                0),
        socket_(std::move(socket)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  Status Join(absl::Time deadline);
  void Start() {
    receiver_ = std::thread([this] { ReceiveLoop(); });
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { PrepareLoop(); });
  }
  void Stop();
  void Cancel() {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
  }
  StatusOr<std::optional<SharedBatch>> Next(absl::Time deadline);
  int64_t first_epoch() const { return first_ / plan_.batches(); }
  LoaderCursor cursor() const;
  SharedLoaderStats stats() const {
    absl::MutexLock lock(&mu_);
    return stats_;
  }

 private:
  // Gives its slot back when the last copy of the batch goes.
  struct Hold {
    std::shared_ptr<Core> core;
    int64_t number;
    ~Hold() { core->Release(number); }
  };

  Status Send(const PrepMessage& message) {
    absl::MutexLock lock(&send_mu_);
    return socket_.Send(EncodePrep(message), Now() + kSendLimit);
  }
  void Fail(Status status) {
    absl::MutexLock lock(&mu_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  // Sends; what cannot be sent ends the loader.
  void Tell(const PrepMessage& message) {
    if (Status sent = Send(message); !sent.ok()) Fail(Lost(sent));
  }
  Status Lost(const Status& status) const {
    return Unavailable("the coordinator of shared preparation at '{}' is gone: {}", options_.socket, MessageOf(status));
  }
  void Release(int64_t number) {
    // In this order: the coordinator must hear of it before it is asked for the next one.
    Send(ReleasePacket{.number = number}).IgnoreError();  // a coordinator that is gone needs no release
    absl::MutexLock lock(&mu_);
    --stats_.held;
  }
  void ReceiveLoop();
  Status Hear(PrepMessage message);
  void PrepareLoop();
  DonePacket Prepare(const LeasePacket& lease, int64_t* skipped);
  bool stopping() const {
    absl::MutexLock lock(&mu_);
    return stopping_ || !failure_.ok();
  }
  SharedBatch View(const BatchPacket& packet);
  void NoteError(const Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (stats_.errors.size() < kMostErrors) stats_.errors.push_back(ToString(status));
  }

  const Dataset& dataset_;
  const SharedLoaderOptions options_;
  const PrepPlan plan_;
  SampleReader reader_;
  absl::Mutex send_mu_;
  PacketSocket socket_;
  const UniqueFd wake_;  // an eventfd
  std::unique_ptr<Mapping> write_, read_;
  int64_t first_ = 0, slots_ = 0, most_held_ = 0;
  std::thread receiver_;
  std::vector<std::thread> threads_;

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false, cancelled_ ABSL_GUARDED_BY(mu_) = false;
  Status failure_ ABSL_GUARDED_BY(mu_);
  std::deque<LeasePacket> leases_ ABSL_GUARDED_BY(mu_);
  bool taking_ ABSL_GUARDED_BY(mu_) = false, ended_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<BatchPacket> batch_ ABSL_GUARDED_BY(mu_);  // arrived, not handed out
  int64_t next_ ABSL_GUARDED_BY(mu_) = 0;                  // the number of the batch that Next hands out next
  SharedLoaderStats stats_ ABSL_GUARDED_BY(mu_);
};

Status SharedLoader::Core::Join(absl::Time deadline) {
  if (!wake_.valid()) return ErrnoError(errno, "eventfd");
  TIDEPOOL_RETURN_IF_ERROR(Send(JoinPacket{.plan = plan_, .name = options_.name}));
  const StatusOr<Packet> packet = socket_.Receive(deadline);
  if (!packet.ok()) return Annotate(packet.status(), fmt::format("joining shared preparation at '{}'", options_.socket));
  TIDEPOOL_ASSIGN_OR_RETURN(const PrepMessage message, DecodePrep(packet->data));
  if (const auto* error = std::get_if<ErrorPacket>(&message)) return ToPrepStatus(error->code, error->text);
  const auto* joined = std::get_if<JoinedPacket>(&message);
  if (joined == nullptr || packet->fds.size() != 1) return Internal("the answer to Join is neither Joined nor Error");
  const int64_t bytes = int64_t{joined->slots} * plan_.slot_bytes();
  struct stat memory {};
  if (::fstat(packet->fds[0].get(), &memory) != 0 || memory.st_size < bytes || bytes == 0) {
    return Internal("staging memory of {} bytes; needed: {}", memory.st_size, bytes);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(write_, Mapping::Map(packet->fds[0].get(), bytes, PROT_READ | PROT_WRITE));
  TIDEPOOL_ASSIGN_OR_RETURN(read_, Mapping::Map(packet->fds[0].get(), bytes, PROT_READ));
  first_ = joined->first;
  slots_ = joined->slots;
  most_held_ = joined->held;
  absl::MutexLock lock(&mu_);
  next_ = first_;
  return {};
}

void SharedLoader::Core::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
  Send(ByePacket{}).IgnoreError();
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  if (receiver_.joinable()) receiver_.join();
}

void SharedLoader::Core::ReceiveLoop() {
  while (true) {
    pollfd entries[] = {{wake_.get(), POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) return Fail(ErrnoError(errno, "poll"));
    if (entries[0].revents != 0) return;
    if (entries[1].revents == 0) continue;
    StatusOr<Packet> packet = socket_.Receive(Now() + kSendLimit);
    if (!packet.ok()) return Fail(Lost(packet.status()));
    StatusOr<PrepMessage> message = DecodePrep(packet->data);
    const Status status = message.ok() ? Hear(*std::move(message)) : message.status();
    if (!status.ok()) return Fail(status);
  }
}

Status SharedLoader::Core::Hear(PrepMessage message) {
  if (const auto* error = std::get_if<ErrorPacket>(&message)) return ToPrepStatus(error->code, error->text);
  absl::MutexLock lock(&mu_);
  if (const auto* lease = std::get_if<LeasePacket>(&message)) {
    if (lease->slot >= slots_ || leases_.size() >= static_cast<size_t>(options_.threads)) {
      return Internal("a lease of slot {} that does not fit what was agreed", lease->slot);
    }
    leases_.push_back(*lease);
    return {};
  }
  if (auto* batch = std::get_if<BatchPacket>(&message)) {
    if (!taking_ || batch_ || batch->number != next_ || batch->slot >= slots_ || batch->samples > plan_.batch) {
      return Internal("batch {} of {} samples in slot {}, where batch {} belongs", batch->number, batch->samples, batch->slot,
                      next_);
    }
    taking_ = false;
    batch_ = std::move(*batch);
    return {};
  }
  if (!std::holds_alternative<EndPacket>(message)) return Internal("a packet that a coordinator does not send");
  taking_ = false;
  ended_ = true;
  return {};
}

void SharedLoader::Core::PrepareLoop() {
  while (!stopping()) {
    Tell(WantPacket{});
    LeasePacket lease;
    {
      absl::MutexLock lock(&mu_);
      const std::function<bool()> wakes = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return stopping_ || !failure_.ok() || !leases_.empty();
      };
      Clock::Real()->Await(&mu_, wakes, absl::InfiniteFuture());
      if (stopping_ || !failure_.ok()) return;
      lease = leases_.front();
      leases_.pop_front();
    }
    const absl::Time start = Now();
    int64_t skipped = 0;
    const DonePacket done = Prepare(lease, &skipped);
    {
      absl::MutexLock lock(&mu_);
      stats_.preparing += Now() - start;
      // Half a batch is nobody's: the lease goes to another job when this one has said goodbye.
      if ((stopping_ || !failure_.ok()) && done.code == static_cast<uint16_t>(StatusCode::kCancelled)) return;
      ++stats_.prepared;
      stats_.prepared_samples += done.samples;
      stats_.skipped += skipped;
    }
    Tell(done);
  }
}

DonePacket SharedLoader::Core::Prepare(const LeasePacket& lease, int64_t* skipped) {
  const int64_t epoch = lease.number / plan_.batches(), b = lease.number % plan_.batches();
  const int64_t first = epoch * plan_.samples + b * plan_.batch, count = plan_.size_of(b);
  reader_.ReleaseBefore(std::max<int64_t>(0, epoch - 1) * plan_.samples);
  for (int64_t i = 0; i < count; ++i) dataset_.WillNeed(reader_.IndexAt(first + i));
  std::byte* slot = write_->at(lease.slot * plan_.slot_bytes());
  auto* numbers = reinterpret_cast<int64_t*>(slot + plan_.numbers_at());
  DonePacket done{.token = lease.token};
  const std::function<bool()> cancelled = [this] { return stopping(); };
  for (int64_t i = 0; i < count; ++i) {
    Status status = cancelled() ? Cancelled("the job stops") : Status();
    SampleReader::Outcome outcome;
    if (status.ok()) {
      status =
          reader_.Read(first + i, {slot + done.samples * plan_.input_bytes, static_cast<size_t>(plan_.input_bytes)},
                       {slot + plan_.targets_at() + done.samples * plan_.target_bytes, static_cast<size_t>(plan_.target_bytes)},
                       cancelled, &outcome);
    } else {
      dataset_.WontNeed(reader_.IndexAt(first + i));
    }
    if (status.ok()) {
      numbers[done.samples++] = outcome.index;
      done.replaced += outcome.replaced.ok() ? 0 : 1;
      if (outcome.replaced.ok()) continue;
      absl::MutexLock lock(&mu_);
      NoteError(outcome.replaced);
      continue;
    }
    if (options_.on_error == OnError::kSkip && status.code() != StatusCode::kCancelled) {
      ++*skipped;
      absl::MutexLock lock(&mu_);
      NoteError(status);
      continue;
    }
    for (int64_t rest = i + 1; rest < count; ++rest) dataset_.WontNeed(reader_.IndexAt(first + rest));
    const ErrorPacket error = ToErrorPacket(status);
    return {.token = lease.token, .code = error.code, .text = error.text};
  }
  return done;
}

SharedBatch SharedLoader::Core::View(const BatchPacket& packet) {
  const std::byte* slot = read_->at(packet.slot * plan_.slot_bytes());
  const auto count = static_cast<size_t>(packet.samples);
  SharedBatch batch;
  batch.hold_ = std::shared_ptr<Hold>(new Hold{.core = shared_from_this(), .number = packet.number});
  batch.inputs_ = {slot, count * static_cast<size_t>(plan_.input_bytes)};
  batch.targets_ = {slot + plan_.targets_at(), count * static_cast<size_t>(plan_.target_bytes)};
  batch.samples_ = {reinterpret_cast<const int64_t*>(slot + plan_.numbers_at()), count};
  batch.epoch_ = packet.number / plan_.batches();
  batch.batch_ = packet.number % plan_.batches();
  batch.replaced_ = packet.replaced;
  return batch;
}

StatusOr<std::optional<SharedBatch>> SharedLoader::Core::Next(absl::Time deadline) {
  const absl::Time start = Now();
  while (true) {
    bool ask = false;
    BatchPacket packet;
    {
      absl::MutexLock lock(&mu_);
      const std::function<bool()> wakes = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return cancelled_ || batch_ || ended_ || !failure_.ok() || !taking_;
      };
      const bool woken = Clock::Real()->Await(&mu_, wakes, deadline);
      if (cancelled_) return Cancelled("the loader was cancelled");
      if (!batch_) {
        if (ended_) return std::optional<SharedBatch>();
        if (!failure_.ok()) return failure_;
        if (!woken)
          return DeadlineExceeded("batch {} of epoch {} did not come in time", next_ % plan_.batches(), next_ / plan_.batches());
        if (stats_.held >= most_held_) {
          return FailedPrecondition("this job holds {} batches, as many as it may; give one up first", stats_.held);
        }
        ask = taking_ = true;
      } else {
        packet = *std::exchange(batch_, std::nullopt);
        ++next_;
        stats_.waited += Now() - start;
        ++stats_.delivered;
        if (packet.code != 0) return ToPrepStatus(packet.code, packet.text);
        stats_.delivered_samples += packet.samples;
        ++stats_.held;
      }
    }
    if (!ask) return std::optional<SharedBatch>(View(packet));
    Tell(TakePacket{});
  }
}

LoaderCursor SharedLoader::Core::cursor() const {
  absl::MutexLock lock(&mu_);
  return {.seed = plan_.seed,
          .fingerprint = plan_.fingerprint,
          .epoch = next_ / plan_.batches(),
          .offset = next_ % plan_.batches() * plan_.batch};
}

StatusOr<std::unique_ptr<SharedLoader>> SharedLoader::Join(const Dataset* dataset, SharedLoaderOptions options,
                                                           absl::Time deadline) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  const PrepPlan plan{.fingerprint = options.fingerprint,
                      .settings = SettingsOf(options),
                      .seed = options.seed,
                      .samples = dataset->size(),
                      .batch = options.batch,
                      .epochs = options.epochs,
                      .input_bytes = dataset->input().size_bytes(),
                      .target_bytes = dataset->target().size_bytes(),
                      .drop_last = options.drop_last};
  TIDEPOOL_RETURN_IF_ERROR(plan.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(PacketSocket socket, PacketSocket::Connect(options.socket));
  auto core = std::make_shared<Core>(dataset, std::move(options), plan, std::move(socket));
  TIDEPOOL_RETURN_IF_ERROR(core->Join(deadline));
  core->Start();
  return std::unique_ptr<SharedLoader>(new SharedLoader(std::move(core)));
}

SharedLoader::~SharedLoader() { core_->Stop(); }
StatusOr<std::optional<SharedBatch>> SharedLoader::Next(absl::Time deadline) { return core_->Next(deadline); }
void SharedLoader::Cancel() { core_->Cancel(); }
int64_t SharedLoader::first_epoch() const { return core_->first_epoch(); }
LoaderCursor SharedLoader::cursor() const { return core_->cursor(); }
SharedLoaderStats SharedLoader::stats() const { return core_->stats(); }

}  // namespace tidepool::data
