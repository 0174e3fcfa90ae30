// data load: the loader as training runs it, behind a cache and a storage model. data share: preparation for several jobs at
// once.
#include <algorithm>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/units.h"
#include "cli/data_verb.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "data/shared_loader.h"
#include "data/shared_prep_coordinator.h"
#include "data/wrapped_source.h"

namespace tidepool::cli {
namespace {

// A wait is cut into pieces of this length, so that Ctrl-C is heard.
constexpr absl::Duration kPatience = absl::Milliseconds(200);

struct EpochReport {
  int64_t epoch = 0, batches = 0, samples = 0, bytes = 0;
  double seconds = 0, waited_s = 0;
  data::CacheStats cache;          // what this epoch added
  data::PacedSourceStats paced;    // likewise
  data::PartitionStats partition;  // likewise

  double samples_per_s() const { return seconds > 0 ? static_cast<double>(samples) / seconds : 0; }
};

data::CacheStats Less(data::CacheStats now, const data::CacheStats& before) {
  now.hits -= before.hits;
  now.misses -= before.misses;
  now.joined -= before.joined;
  now.failed -= before.failed;
  now.evicted -= before.evicted;
  return now;
}

data::PacedSourceStats Less(data::PacedSourceStats now, const data::PacedSourceStats& before) {
  now.model.ops -= before.model.ops;
  now.model.bytes -= before.model.bytes;
  now.waited -= before.waited;
  now.beyond -= before.beyond;
  return now;
}

data::PartitionStats Less(data::PartitionStats now, const data::PartitionStats& before) {
  now.local_hits -= before.local_hits;
  now.remote_hits -= before.remote_hits;
  now.storage -= before.storage;
  now.joined -= before.joined;
  now.failed -= before.failed;
  now.not_kept -= before.not_kept;
  now.peer_failed -= before.peer_failed;
  now.remote_bytes -= before.remote_bytes;
  return now;
}

double ShareOf(int64_t part, const data::PartitionStats& stats) {
  return stats.reads() > 0 ? static_cast<double>(part) / static_cast<double>(stats.reads()) : 0;
}

class DataLoadVerb : public DataVerb {
 public:
  std::string path() const override { return "data load"; }
  std::string summary() const override { return "Run the loader over a data set and tell rates, cache hits and storage waits"; }
  std::string details() const override {
    return "The storage model makes real files as slow as another disk; the cache stands before it.\n"
           "--shared joins jobs that prepare each batch once for all of them (start `tidepool data share` first).\n"
           "--peers makes one cache of the memory of several nodes: each record has an owner, which follows from --cache-seed.\n"
           "Start one per node, with the same data, --peers and --cache-seed. What an owner that is gone kept is read from "
           "storage.\n"
           "There is no authentication: whoever reaches the port can read the data.\n\n"
           "  tidepool data load pictures/ --epochs 3 --cache minio --cache-bytes 200MiB --storage hdd\n"
           "  tidepool data load pictures/ --storage sata-ssd,rate=100MB,depth=4\n"
           "  tidepool data load pictures/ --shared /tmp/prep.sock\n"
           "  tidepool data load pictures/ --cache minio --cache-bytes 1GiB --peers 127.0.0.1:7101,127.0.0.1:7102 --node 0 &\n"
           "  tidepool data load pictures/ --cache minio --cache-bytes 1GiB --peers 127.0.0.1:7101,127.0.0.1:7102 --node 1";
  }
  void Register(OptionTable* table) override {
    DataVerb::Register(table);
    table->Add({.key = "data.epochs", .help = "How often to go through the data"}, &epochs_);
    table->Add({.key = "data.batch", .help = "Samples in a batch"}, &batch_);
    table->Add({.key = "data.threads", .help = "Reading threads; 0: the cores"}, &threads_);
    table->Add({.key = "data.image_size", .help = "Side of the samples in pixels"}, &image_size_);
    table->Add({.key = "data.min_area", .help = "Smallest share of a picture that a random crop takes"}, &min_area_);
    table->Add({.key = "data.seed", .help = "Seed of order and augmentation"}, &seed_);
    table->Add({.key = "data.skip_broken", .help = "Leave out samples that cannot be read"}, &skip_broken_);
    data::AddWrapOptions("data", table, &wrap_);
    data::AddPartitionOptions("data", table, &wrap_.partition);
    table->Add({.key = "data.fill", .help = "With --peers: fill this node's part before the first epoch"}, &fill_);
    table->Add({.key = "data.linger", .help = "With --peers: how long to go on answering nodes that are connected when done"},
               &linger_);
    table->Add({.key = "data.shared", .help = "Socket of `tidepool data share`; empty: alone", .metavar = "SOCKET"}, &socket_);
    table->Add({.key = "data.name", .help = "With --shared: the name of this job"}, &name_);
  }

  Status Run(const VerbContext& context) override {
    TIDEPOOL_RETURN_IF_ERROR(wrap_.Validate());
    if (!wrap_.partition.partitioned() && fill_) return InvalidArgument("--fill without --peers");
    if (epochs_ < 1 || threads_ < 0 || threads_ > 256) {
      return InvalidArgument("{} epochs on {} threads; allowed: 1 or more, on 0 (the cores) to 256", epochs_, threads_);
    }
    if (threads_ == 0) threads_ = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const data::RecordSource> container, Open());
    TIDEPOOL_ASSIGN_OR_RETURN(source_, data::WrappedSource::Create(std::move(container), wrap_));
    TIDEPOOL_ASSIGN_OR_RETURN(dataset_,
                              data::OpenImages(source_, {.image_size = static_cast<int>(image_size_), .min_area = min_area_}));
    if (source_->partition() != nullptr) {
      fmt::print(stderr, "node {} of {} answers at {}\n", wrap_.partition.node, wrap_.partition.peers.size(),
                 source_->partition()->address());
      if (fill_) TIDEPOOL_RETURN_IF_ERROR(source_->partition()->Fill(absl::InfiniteFuture(), context.stopped));
      partition_ = source_->partition()->stats();  // what filled it is no part of the first epoch
    }
    TIDEPOOL_RETURN_IF_ERROR(socket_.empty() ? RunAlone(context) : RunShared(context));
    if (source_->partition() != nullptr) Linger(context);
    Print(context);
    return {};
  }

 private:
  data::OnError on_error() const { return skip_broken_ ? data::OnError::kSkip : data::OnError::kFail; }

  // Calls `next` until it gives nothing more; it returns what it found, or DEADLINE_EXCEEDED to be called again.
  template <typename Loader>
  Status Consume(const VerbContext& context, Loader* loader) {
    ProgressLine line(context);
    Begin();
    while (true) {
      if (context.stopped()) return Cancelled("stopped in epoch {}", reports_.empty() ? 0 : reports_.back().epoch);
      auto batch = loader->Next(Clock::Real()->Now() + kPatience);
      if (!batch.ok() && batch.status().code() == StatusCode::kDeadlineExceeded) continue;
      TIDEPOOL_RETURN_IF_ERROR(batch.status());
      if (!batch->has_value()) break;
      if (reports_.empty() || reports_.back().epoch != (*batch)->epoch()) {
        if (!reports_.empty()) End(loader->stats().waited);
        reports_.push_back({.epoch = (*batch)->epoch()});
      }
      EpochReport& report = reports_.back();
      ++report.batches;
      report.samples += (*batch)->size();
      report.bytes += static_cast<int64_t>((*batch)->inputs().size() + (*batch)->targets().size());
      line.Show(fmt::format("epoch {}: {} of {} samples", report.epoch, report.samples, dataset_->size()));
    }
    if (!reports_.empty()) End(loader->stats().waited);
    return {};
  }

  Status RunAlone(const VerbContext& context) {
    const int64_t sample_bytes = dataset_->input().size_bytes() + dataset_->target().size_bytes();
    TIDEPOOL_ASSIGN_OR_RETURN(
        const auto loader, data::BatchLoader::Start(dataset_.get(), {.threads = static_cast<int>(threads_),
                                                                     .batch = batch_,
                                                                     .max_bytes = (2 + threads_) * (batch_ * sample_bytes + 64),
                                                                     .epochs = epochs_,
                                                                     .on_error = on_error(),
                                                                     .start = {.seed = seed_}}));
    TIDEPOOL_RETURN_IF_ERROR(Consume(context, loader.get()));
    const data::BatchLoaderStats stats = loader->stats();
    skipped_ = stats.skipped;
    errors_ = stats.errors;
    return {};
  }

  Status RunShared(const VerbContext& context) {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto loader, data::SharedLoader::Join(dataset_.get(),
                                                                          {.socket = socket_,
                                                                           .name = name_,
                                                                           .threads = static_cast<int>(threads_),
                                                                           .batch = batch_,
                                                                           .epochs = epochs_,
                                                                           .seed = seed_,
                                                                           .on_error = on_error(),
                                                                           .fingerprint = source_->fingerprint(),
                                                                           .decoding = static_cast<uint64_t>(image_size_) << 32 |
                                                                                       static_cast<uint32_t>(1e6 * min_area_)},
                                                                          Clock::Real()->Now() + absl::Seconds(10)));
    const Status status = Consume(context, loader.get());
    const data::SharedLoaderStats stats = loader->stats();
    if (!status.ok()) {
      return status.code() == StatusCode::kUnavailable ? Annotate(status, fmt::format("stopped at {}", loader->cursor().ToText()))
                                                       : status;
    }
    prepared_ = stats.prepared;
    skipped_ = stats.skipped;
    errors_ = stats.errors;
    return {};
  }

  // Others may still need what this node keeps. A node that is done too has closed its connections.
  void Linger(const VerbContext& context) {
    source_->partition()->CloseIdleConnections();
    const absl::Time until = Clock::Real()->Now() + linger_;
    while (source_->partition()->stats().server.connections > 0 && Clock::Real()->Now() < until && !context.stopped()) {
      Clock::Real()->SleepFor(absl::Milliseconds(20));
    }
    partition_ = source_->partition()->stats();
  }

  void Begin() { epoch_start_ = MonotonicNanos(); }
  void End(absl::Duration waited) {
    EpochReport& report = reports_.back();
    const int64_t now = MonotonicNanos();
    report.seconds = 1e-9 * static_cast<double>(now - epoch_start_);
    report.waited_s = absl::ToDoubleSeconds(waited - waited_);
    epoch_start_ = now;
    waited_ = waited;
    if (source_->cache() != nullptr) {
      const data::CacheStats stats = source_->cache()->stats();
      report.cache = Less(stats, std::exchange(cache_, stats));
    }
    if (source_->paced() != nullptr) {
      const data::PacedSourceStats stats = source_->paced()->stats();
      report.paced = Less(stats, std::exchange(paced_, stats));
    }
    if (source_->partition() != nullptr) {
      const data::PartitionStats stats = source_->partition()->stats();
      report.partition = Less(stats, std::exchange(partition_, stats));
    }
  }

  void Print(const VerbContext& context) const {
    if (context.output == OutputFormat::kJson) return PrintAsJson();
    fmt::print("{:>5}{:>10}{:>12}{:>10}", "epoch", "samples", "samples/s", "waited");
    if (source_->cache() != nullptr) fmt::print("{:>8}{:>10}{:>10}", "hits", "kept", "evicted");
    if (source_->partition() != nullptr) fmt::print("{:>8}{:>8}{:>9}{:>10}", "local", "remote", "storage", "kept");
    if (source_->paced() != nullptr) fmt::print("{:>9}{:>12}", "disk ops", "disk bytes");
    fmt::print("\n");
    for (const EpochReport& report : reports_) {
      fmt::print("{:>5}{:>10}{:>12.0f}{:>8.2f} s", report.epoch, report.samples, report.samples_per_s(), report.waited_s);
      if (source_->cache() != nullptr) {
        fmt::print("{:>6.1f} %{:>10}{:>10}", 100 * report.cache.hit_share(), FormatBytes(report.cache.used_bytes),
                   report.cache.evicted);
      }
      if (source_->partition() != nullptr) {
        const data::PartitionStats& stats = report.partition;
        fmt::print("{:>6.1f} %{:>6.1f} %{:>7.1f} %{:>10}", 100 * ShareOf(stats.local_hits, stats),
                   100 * ShareOf(stats.remote_hits, stats), 100 * ShareOf(stats.storage, stats),
                   FormatBytes(stats.own.used_bytes + stats.others.used_bytes));
      }
      if (source_->paced() != nullptr) {
        fmt::print("{:>9}{:>12}", report.paced.model.ops, FormatBytes(report.paced.model.bytes));
      }
      fmt::print("\n");
    }
    if (source_->partition() != nullptr) PrintPeers();
    if (source_->paced() != nullptr && paced_.beyond > 0.1 * paced_.waited) {
      fmt::print("the real disk is slower than '{}': reads waited {:.2f} s for the model and {:.2f} s beyond it\n", wrap_.storage,
                 absl::ToDoubleSeconds(paced_.waited), absl::ToDoubleSeconds(paced_.beyond));
    }
    if (!socket_.empty()) fmt::print("this job prepared {} batches for all\n", prepared_);
    if (skipped_ > 0) fmt::print("{} samples left out; the first: {}\n", skipped_, errors_.empty() ? "" : errors_[0]);
  }

  void PrintPeers() const {
    const data::PartitionServerStats& server = partition_.server;
    fmt::print("this node gave others {} records ({}) and did not have {} that they asked for\n", server.records,
               FormatBytes(server.record_bytes), server.absent);
    for (size_t node = 0; node < partition_.peers.size(); ++node) {
      const data::PeerStats& peer = partition_.peers[node];
      if (static_cast<int64_t>(node) == wrap_.partition.node) continue;
      fmt::print("node {} at {}: {}, {} requests, {} records, {} absent, {} failures\n", node, wrap_.partition.peers[node],
                 peer.up ? "up" : "down", peer.requests, peer.records, peer.absent, peer.failures);
    }
  }

  Json PeersJson() const {
    Json peers = Json::array();
    for (size_t node = 0; node < partition_.peers.size(); ++node) {
      const data::PeerStats& peer = partition_.peers[node];
      if (static_cast<int64_t>(node) == wrap_.partition.node) continue;
      peers.push_back({{"node", node},
                       {"address", wrap_.partition.peers[node]},
                       {"up", peer.up},
                       {"requests", peer.requests},
                       {"records", peer.records},
                       {"record_bytes", peer.record_bytes},
                       {"absent", peer.absent},
                       {"refused", peer.refused},
                       {"failures", peer.failures},
                       {"not_asked", peer.skipped}});
    }
    const data::PartitionServerStats& server = partition_.server;
    return {{"node", wrap_.partition.node},
            {"nodes", wrap_.partition.peers.size()},
            {"address", source_->partition()->address()},
            {"answered",
             {{"records", server.records},
              {"record_bytes", server.record_bytes},
              {"absent", server.absent},
              {"failed", server.failed},
              {"refused", server.refused}}},
            {"peers", std::move(peers)}};
  }

  void PrintAsJson() const {
    Json epochs = Json::array();
    for (const EpochReport& report : reports_) {
      Json json = {{"epoch", report.epoch},        {"batches", report.batches}, {"samples", report.samples},
                   {"output_bytes", report.bytes}, {"seconds", report.seconds}, {"samples_per_s", report.samples_per_s()},
                   {"waited_s", report.waited_s}};
      if (source_->cache() != nullptr) {
        json["cache"] = {{"hits", report.cache.hits},
                         {"misses", report.cache.misses},
                         {"joined", report.cache.joined},
                         {"failed", report.cache.failed},
                         {"hit_share", report.cache.hit_share()},
                         {"evicted", report.cache.evicted},
                         {"used_bytes", report.cache.used_bytes}};
      }
      if (source_->partition() != nullptr) {
        const data::PartitionStats& stats = report.partition;
        json["partition"] = {{"local_hits", stats.local_hits},
                             {"remote_hits", stats.remote_hits},
                             {"storage", stats.storage},
                             {"joined", stats.joined},
                             {"failed", stats.failed},
                             {"not_kept", stats.not_kept},
                             {"peer_failed", stats.peer_failed},
                             {"remote_bytes", stats.remote_bytes},
                             {"own_bytes", stats.own.used_bytes},
                             {"others_bytes", stats.others.used_bytes}};
      }
      if (source_->paced() != nullptr) {
        json["storage"] = {{"ops", report.paced.model.ops},
                           {"bytes", report.paced.model.bytes},
                           {"waited_s", absl::ToDoubleSeconds(report.paced.waited)},
                           {"beyond_s", absl::ToDoubleSeconds(report.paced.beyond)}};
      }
      epochs.push_back(std::move(json));
    }
    PrintJson({{"data", data_[0]},
               {"records", dataset_->size()},
               {"threads", threads_},
               {"batch", batch_},
               {"cache", wrap_.cache},
               {"cache_bytes", wrap_.cache_bytes},
               {"storage", wrap_.storage},
               {"partition", source_->partition() != nullptr ? PeersJson() : Json(nullptr)},
               {"shared", !socket_.empty()},
               {"prepared_batches", prepared_},
               {"skipped", skipped_},
               {"errors", errors_},
               {"epochs", std::move(epochs)}});
  }

  int64_t epochs_ = 1, batch_ = 32, threads_ = 0, image_size_ = 224;
  double min_area_ = 0.25;
  uint64_t seed_ = 1;
  bool skip_broken_ = false;
  data::WrapOptions wrap_;
  bool fill_ = false;
  absl::Duration linger_ = absl::Seconds(30);
  std::string socket_, name_ = "data load";

  std::shared_ptr<const data::WrappedSource> source_;
  std::unique_ptr<data::Dataset> dataset_;
  std::vector<EpochReport> reports_;
  int64_t epoch_start_ = 0;
  absl::Duration waited_ = absl::ZeroDuration();
  data::CacheStats cache_;
  data::PacedSourceStats paced_;
  data::PartitionStats partition_;
  int64_t prepared_ = 0, skipped_ = 0;
  std::vector<std::string> errors_;
};

class DataShareVerb : public Verb {
 public:
  std::string path() const override { return "data share"; }
  std::string summary() const override { return "Let several jobs on one data set prepare each batch once for all of them"; }
  std::string details() const override {
    return "Jobs join through the socket (`tidepool data load --shared SOCKET`); all must load the same data with the same "
           "options.\n"
           "Ends when all jobs that have joined have left, or with Ctrl-C.\n\n"
           "  tidepool data share --socket /tmp/prep.sock --jobs 4 --staging 1GiB";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "share.socket", .help = "Where jobs join", .metavar = "PATH"}, &options_.socket);
    table->Add({.key = "share.staging", .help = "Shared memory for prepared batches"}, BytesField{&options_.staging_bytes});
    table->Add({.key = "share.jobs", .help = "Jobs that the first epoch waits for"}, &options_.jobs);
    table->Add({.key = "share.join_limit", .help = "How long it waits for them"}, &options_.join_limit);
    table->Add({.key = "share.lease_limit", .help = "Time for one batch before another job prepares it"}, &options_.lease_limit);
    table->Add({.key = "share.use_limit", .help = "How long a job may hold up the others"}, &options_.use_limit);
  }
  Status Run(const VerbContext& context) override {
    if (options_.socket.empty()) return InvalidArgument("--socket is missing; allowed: a path, for example /tmp/prep.sock");
    TIDEPOOL_ASSIGN_OR_RETURN(const auto coordinator, data::PrepCoordinator::Start(options_));
    fmt::print(stderr, "waiting for {} jobs at '{}'\n", options_.jobs, options_.socket);
    while (!context.stopped() && !coordinator->AwaitAllLeft(Clock::Real()->Now() + kPatience).ok()) {
    }
    const data::PrepCoordinatorStats stats = coordinator->stats();
    if (context.output == OutputFormat::kJson) {
      Json epochs = Json::array();
      for (const data::PrepEpochAccount& epoch : stats.epochs) {
        epochs.push_back({{"epoch", epoch.epoch},
                          {"prepared", epoch.prepared},
                          {"delivered", epoch.delivered},
                          {"takeovers", epoch.takeovers},
                          {"repeated", epoch.repeated},
                          {"wasted", epoch.wasted}});
      }
      PrintJson({{"joined", stats.joined},
                 {"left", stats.left},
                 {"refused", stats.refused},
                 {"expelled", stats.expelled},
                 {"slots", stats.slots},
                 {"slot_bytes", stats.slot_bytes},
                 {"epochs", std::move(epochs)}});
    } else {
      fmt::print("{} jobs joined, {} were expelled, {} were refused\n", stats.joined, stats.expelled, stats.refused);
      fmt::print("{:>5}{:>10}{:>11}{:>11}{:>8}\n", "epoch", "prepared", "delivered", "takeovers", "wasted");
      for (const data::PrepEpochAccount& epoch : stats.epochs) {
        fmt::print("{:>5}{:>10}{:>11}{:>11}{:>8}\n", epoch.epoch, epoch.prepared, epoch.delivered, epoch.takeovers, epoch.wasted);
      }
    }
    return context.stopped() ? Cancelled("stopped with {} jobs", stats.joined - stats.left) : Status();
  }

 private:
  data::PrepCoordinatorOptions options_ = {.staging_bytes = 256 * kMiB};
};

}  // namespace

void AddDataLoadVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<DataLoadVerb>());
  verbs->push_back(std::make_unique<DataShareVerb>());
}

}  // namespace tidepool::cli
