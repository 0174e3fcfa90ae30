// What the verbs of data sets share.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "cli/verb.h"
#include "data/containers.h"

namespace tidepool::cli {

using Json = nlohmann::ordered_json;

inline void PrintJson(const Json& json) { fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace)); }

// A line on the terminal that the next one replaces.
class ProgressLine {
 public:
  explicit ProgressLine(const VerbContext& context) : shown_(context.progress) {}
  ~ProgressLine() {
    if (open_) std::fputs("\r\033[K", stderr);
  }
  void Show(const std::string& text) {
    if (!shown_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    open_ = true;
  }

 private:
  const bool shown_;
  bool open_ = false;
};

class DataVerb : public Verb {
 public:
  void Register(OptionTable* table) override {
    table->Add({.key = "data.classes", .help = "Number of classes; 0: from the labels"}, &options_.classes);
    table->Add({.key = "data.first_label", .help = "The label that becomes class 0 (tar and TFRecord)"}, &options_.first_label);
    table->Add({.key = "data.allow_damaged", .help = "Use a damaged shard up to the damage"}, &options_.allow_damaged);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "DATA",
             .help = "imagefolder:PATH, webdataset:SHARDS, tfrecord:SHARDS, packed:SHARDS or PATH",
             .values = &data_,
             .min = 1}};
  }

 protected:
  StatusOr<std::unique_ptr<data::ExtentSource>> Open() const {
    TIDEPOOL_ASSIGN_OR_RETURN(auto source, data::OpenRecordSource(data_[0], options_));
    for (const std::string& fault : source->faults()) fmt::print(stderr, "left out: {}\n", fault);
    return source;
  }

  data::SourceOptions options_;
  std::vector<std::string> data_;
};

// data load, data share.
void AddDataLoadVerbs(VerbList* verbs);

}  // namespace tidepool::cli
