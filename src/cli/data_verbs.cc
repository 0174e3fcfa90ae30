// Verbs of data sets: data show, check, pack, make; and bench loader. data load and data share are in data_load_verbs.cc.
#include <algorithm>
#include <filesystem>
#include <system_error>

#include "base/fd.h"
#include "base/units.h"
#include "cli/data_verb.h"
#include "cli/loader_bench.h"
#include "data/jpeg.h"
#include "data/packed.h"

namespace tidepool::cli {
namespace {

class DataShowVerb : public DataVerb {
 public:
  std::string path() const override { return "data show"; }
  std::string summary() const override { return "Show what a data set holds: records, classes, sizes, groups"; }
  std::string details() const override {
    return "  tidepool data show pictures/\n"
           "  tidepool data show 'webdataset:shards/x-{000000..000146}.tar'";
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto source, Open());
    std::vector<int64_t> sizes;
    int64_t total = 0, groups = 0;
    for (int64_t i = 0; i < source->size(); ++i) {
      if (context.stopped()) return Cancelled("stopped after {} of {} records", i, source->size());
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, source->SizeBytes(i));
      sizes.push_back(bytes);
      total += bytes;
      groups += source->Group(i).begin == i;
    }
    std::sort(sizes.begin(), sizes.end());
    const auto quantile = [&](double q) { return sizes[static_cast<size_t>(q * static_cast<double>(sizes.size() - 1))]; };
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"data", data_[0]},
                 {"records", source->size()},
                 {"classes", source->classes()},
                 {"class_names", source->class_names()},
                 {"groups", groups},
                 {"bytes", total},
                 {"record_bytes",
                  {{"min", sizes.front()},
                   {"p10", quantile(0.1)},
                   {"p50", quantile(0.5)},
                   {"p90", quantile(0.9)},
                   {"max", sizes.back()}}},
                 {"fingerprint", fmt::format("{:016x}", source->fingerprint())},
                 {"left_out", source->faults()}});
      return {};
    }
    fmt::print("records      {}\nclasses      {}\n", source->size(), source->classes());
    fmt::print("groups       {} (read with one disk read each)\n", groups);
    fmt::print("bytes        {}\n", FormatBytes(total));
    fmt::print("record size  {} to {}, median {}\n", FormatBytes(sizes.front()), FormatBytes(sizes.back()),
               FormatBytes(quantile(0.5)));
    fmt::print("fingerprint  {:016x}\n", source->fingerprint());
    return {};
  }
};

class DataCheckVerb : public DataVerb {
 public:
  std::string path() const override { return "data check"; }
  std::string summary() const override { return "Read and decode every picture of a data set and name the faulty ones"; }
  std::string details() const override {
    return "Exit code 1 if a record is faulty. --decode=false checks what the container can: sizes and checksums.";
  }
  void Register(OptionTable* table) override {
    DataVerb::Register(table);
    table->Add({.key = "data.decode", .help = "Decode the pictures too"}, &decode_);
    table->Add({.key = "data.faults", .help = "Faulty records to name at most"}, &most_faults_);
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto source, Open());
    ProgressLine line(context);
    std::vector<std::string> faults = source->faults();
    int64_t faulty = static_cast<int64_t>(faults.size());
    for (int64_t i = 0; i < source->size(); ++i) {
      if (context.stopped()) return Cancelled("stopped after {} of {} records", i, source->size());
      if (i % 256 == 0) line.Show(fmt::format("{} of {} records, {} faulty", i, source->size(), faulty));
      if (i % kAhead == 0) {
        for (int64_t next = i; next < std::min(i + kAhead, source->size()); ++next) source->WillNeed(next);
      }
      const Status status = CheckRecord(*source, i);
      if (status.ok()) continue;
      ++faulty;
      if (static_cast<int64_t>(faults.size()) < most_faults_) faults.push_back(MessageOf(status));
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"data", data_[0]}, {"records", source->size()}, {"faulty", faulty}, {"faults", faults}});
    } else {
      for (const std::string& fault : faults) fmt::print("{}\n", fault);
      fmt::print("{} records, {} faulty\n", source->size(), faulty);
    }
    if (faulty > 0) return DataLoss("{} of {} records are faulty", faulty, source->size());
    return {};
  }

 private:
  static constexpr int64_t kAhead = 64;

  Status CheckRecord(const data::RecordSource& source, int64_t record) {
    TIDEPOOL_ASSIGN_OR_RETURN(const data::RecordView view, source.Read(record));
    TIDEPOOL_ASSIGN_OR_RETURN(const data::LabelledPicture sample, source.Parse(record, view.bytes()));
    if (!decode_) return {};
    const auto info = data::ReadJpegInfo(sample.picture);
    const Status decoded = info.ok() ? data::DecodeJpeg(sample.picture, *info, 1, &image_) : info.status();
    return decoded.ok() ? decoded : Annotate(decoded, source.Describe(record));
  }

  bool decode_ = true;
  int64_t most_faults_ = 20;
  data::Image image_;
};

class DataPackVerb : public DataVerb {
 public:
  std::string path() const override { return "data pack"; }
  std::string summary() const override { return "Copy the pictures of a data set into packed files"; }
  std::string details() const override {
    return "A packed file has one index, checksums, and groups of pictures that one disk read brings in. --shuffle mixes the "
           "classes\n"
           "within groups, for training that shuffles groups only.\n\n"
           "  tidepool data pack imagefolder:pictures pictures.tpk --shuffle\n"
           "  tidepool data pack 'webdataset:x-{000..146}.tar' x.tpk --shard 4GiB";
  }
  std::vector<Positional> positionals() override {
    std::vector<Positional> all = DataVerb::positionals();
    all.push_back({.name = "FILE", .help = "x.tpk; with --shard x-00000.tpk and so on", .values = &output_, .min = 1});
    return all;
  }
  void Register(OptionTable* table) override {
    DataVerb::Register(table);
    table->Add({.key = "data.group", .help = "Size of a group of records"}, BytesField{&job_.group_bytes});
    table->Add({.key = "data.shard", .help = "Size of a file; 0: one file"}, BytesField{&job_.shard_bytes});
    table->Add({.key = "data.shuffle", .help = "Put the records into a random order"}, &job_.shuffle);
    table->Add({.key = "data.seed", .help = "Seed of the random order"}, &job_.seed);
    table->Add({.key = "data.skip_broken", .help = "Leave out records that cannot be read"}, &job_.skip_broken);
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto source, Open());
    data::PackSummary summary;
    {
      ProgressLine line(context);
      job_.output = output_[0];
      job_.progress = [&](int64_t done, int64_t total) {
        if (done % 256 == 0) line.Show(fmt::format("{} of {} records", done, total));
        return !context.stopped();
      };
      TIDEPOOL_ASSIGN_OR_RETURN(summary, data::PackRecords(*source, source->class_names(), job_));
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"files", summary.files},
                 {"records", summary.records},
                 {"groups", summary.groups},
                 {"bytes", summary.bytes},
                 {"skipped", summary.skipped},
                 {"first_skipped", summary.first_skipped}});
      return {};
    }
    fmt::print("{} records in {} groups, {} in {}\n", summary.records, summary.groups, FormatBytes(summary.bytes),
               summary.files.size() == 1 ? summary.files[0] : fmt::format("{} files", summary.files.size()));
    if (summary.skipped > 0) fmt::print("{} records left out; the first: {}\n", summary.skipped, summary.first_skipped);
    return {};
  }

 private:
  data::PackJob job_;
  std::vector<std::string> output_;
};

class DataMakeVerb : public Verb {
 public:
  std::string path() const override { return "data make"; }
  std::string summary() const override { return "Make a folder of JPEG pictures, to try things without a data set"; }
  std::string details() const override {
    return "Pictures of about 500 x 375 pixels with detail at all scales, in FOLDER/<class>/<number>.jpg: the same for the same "
           "seed. "
           "They\ndecode as photographs do; what is on them means nothing.\n\n"
           "  tidepool data make pictures --pictures 2000";
  }
  std::vector<Positional> positionals() override {
    return {{.name = "FOLDER", .help = "New, or empty", .values = &folder_, .min = 1}};
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "make.pictures", .help = "How many"}, &pictures_);
    table->Add({.key = "make.classes", .help = "Folders that they are dealt to"}, &classes_);
    table->Add({.key = "make.quality", .help = "JPEG quality, 1 to 100"}, &quality_);
    table->Add({.key = "make.seed", .help = "Seed of the pictures"}, &seed_);
  }
  Status Run(const VerbContext& context) override {
    constexpr int64_t kMostPictures = 10'000'000, kMostClasses = 100'000;
    if (pictures_ < 1 || pictures_ > kMostPictures || classes_ < 1 || classes_ > kMostClasses || quality_ < 1 || quality_ > 100) {
      return InvalidArgument("{} pictures in {} classes of quality {}; allowed: 1 to {}, 1 to {}, 1 to 100", pictures_, classes_,
                             quality_, kMostPictures, kMostClasses);
    }
    std::error_code failed;
    std::filesystem::create_directories(folder_[0], failed);
    if (failed) return ErrnoError(failed.value(), fmt::format("making the folder '{}'", folder_[0]));
    const bool empty = std::filesystem::is_empty(folder_[0], failed);
    if (failed) return ErrnoError(failed.value(), fmt::format("looking into '{}'", folder_[0]));
    if (!empty) return AlreadyExists("'{}' is not empty; allowed: a new or an empty folder", folder_[0]);
    ProgressLine line(context);
    int64_t bytes = 0;
    for (int64_t i = 0; i < pictures_; ++i) {
      if (context.stopped()) return Cancelled("stopped after {} of {} pictures", i, pictures_);
      const std::string folder = fmt::format("{}/{:05}", folder_[0], i % classes_);
      if (i < classes_) std::filesystem::create_directory(folder, failed);
      if (failed) return ErrnoError(failed.value(), fmt::format("making the folder '{}'", folder));
      const std::string picture = BenchPicture(seed_ + static_cast<uint64_t>(i), static_cast<int>(quality_));
      TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(fmt::format("{}/{:08}.jpg", folder, i), picture));
      bytes += std::ssize(picture);
      if (i % 16 == 0) line.Show(fmt::format("{} of {} pictures", i, pictures_));
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"folder", folder_[0]}, {"pictures", pictures_}, {"classes", std::min(classes_, pictures_)}, {"bytes", bytes}});
    } else {
      fmt::print("{} pictures, {}, in '{}'\n", pictures_, FormatBytes(bytes), folder_[0]);
    }
    return {};
  }

 private:
  std::vector<std::string> folder_;
  int64_t pictures_ = 1000, classes_ = 10, quality_ = 85;
  uint64_t seed_ = 1;
};

class BenchLoaderVerb : public Verb {
 public:
  std::string path() const override { return "bench loader"; }
  std::string summary() const override { return "Measure the input pipeline beside PyTorch's, libjpeg-turbo and plain reads"; }
  std::string details() const override {
    return "Everything runs on the same pictures. Per core means per second of CPU time of all threads and processes that take "
           "part.\n"
           "PyTorch needs Debian's python3-torch and python3-torchvision; what is not installed is reported as absent.";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "bench.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "bench.data", .help = "Folder of <class>/<file>.jpg; default: made", .metavar = "PATH"}, &options_.data);
    table->Add({.key = "bench.pictures", .help = "Pictures to make, of about 500 x 375 pixels"}, &options_.pictures);
    table->Add({.key = "bench.quality", .help = "JPEG quality of the pictures that are made"}, &options_.quality);
    table->Add({.key = "bench.image_size", .help = "Side of the samples in pixels"}, &options_.image_size);
    table->Add({.key = "bench.min_area", .help = "Smallest share of a picture that a random crop takes"}, &options_.min_area);
    table->Add({.key = "bench.batch", .help = "Samples in a batch"}, &options_.batch);
    table->Add({.key = "bench.threads", .help = "Threads (and workers of PyTorch) beside 1; 0: the cores"}, &options_.threads);
    table->Add({.key = "bench.seconds", .help = "Length of one measurement"}, &options_.seconds);
    table->Add({.key = "bench.rounds", .help = "Measurements of each kind; the median counts"}, &options_.rounds);
    table->Add({.key = "bench.directory", .help = "Where files are made; default: temporary files", .metavar = "DIR"},
               &options_.directory);
    table->Add({.key = "bench.disk", .help = "Size of the file that is read from the disk; 0: none"},
               BytesField{&options_.disk_bytes});
    data::AddWrapOptions("bench", table, &options_.wrap);
    table->Add({.key = "bench.python", .help = "Interpreter that has torch; empty: leave PyTorch out", .metavar = "PATH"},
               &options_.python);
  }
  Status Run(const VerbContext& context) override {
    StatusOr<LoaderBenchResult> result = Internal("not run");
    {
      ProgressLine line(context);
      result = RunLoaderBench(
          options_, [&](const std::string& text) { line.Show(text); }, context.stopped);
    }
    TIDEPOOL_RETURN_IF_ERROR(result.status());
    const std::string json = ToJson(options_, *result);
    if (!json_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_file_, json + "\n"));
    fmt::print("{}\n", context.output == OutputFormat::kJson ? json : ToText(*result));
    return {};
  }

 private:
  LoaderBenchOptions options_;
  std::string json_file_;
};

}  // namespace

void AddDataVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<DataShowVerb>());
  verbs->push_back(std::make_unique<DataCheckVerb>());
  verbs->push_back(std::make_unique<DataPackVerb>());
  verbs->push_back(std::make_unique<DataMakeVerb>());
  AddDataLoadVerbs(verbs);
  verbs->push_back(std::make_unique<BenchLoaderVerb>());
}

}  // namespace tidepool::cli
