#include "data/stalls/published.h"

#include <cmath>
#include <cstdlib>

#include "base/fd.h"
#include "base/text.h"
#include "data/stalls/workloads.h"
#include "profile/import.h"
#include "profile/lookup.h"
#include "profile/open.h"

namespace tidepool::data::stalls {
namespace {

constexpr int64_t kMostFile = int64_t{16} << 20;
constexpr double kPictureBytes = 3 * 224 * 224 * 4;

StatusOr<double> Number(const std::string& path, int64_t line, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value)) {
    return InvalidArgument("{}:{}: '{}' is not a number", path, line, text.substr(0, 40));
  }
  return value;
}

// Fields of each line that is not empty.
StatusOr<std::vector<std::vector<std::string>>> ReadLines(const std::string& path, char separator, size_t fields, int lines) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostFile));
  std::vector<std::vector<std::string>> rows;
  int64_t number = 0;
  for (std::string line : SplitText(text, '\n')) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    rows.push_back(SplitText(line, separator));
    if (rows.back().size() != fields) {
      return InvalidArgument("{}:{}: {} fields; needed: {}", path, number, rows.back().size(), fields);
    }
  }
  if (std::ssize(rows) != lines) return InvalidArgument("{}: {} lines; needed: {}", path, rows.size(), lines);
  return rows;
}

}  // namespace

StatusOr<std::vector<PublishedRun>> ReadRuns(const std::string& path, int lines) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto rows, ReadLines(path, ' ', 3, lines));
  std::vector<PublishedRun> runs;
  for (const std::vector<std::string>& row : rows) {
    PublishedRun run;
    const auto line = static_cast<int64_t>(runs.size() + 1);
    TIDEPOOL_ASSIGN_OR_RETURN(run.wait, Number(path, line, row[0]));
    TIDEPOOL_ASSIGN_OR_RETURN(run.copy, Number(path, line, row[1]));
    TIDEPOOL_ASSIGN_OR_RETURN(run.compute, Number(path, line, row[2]));
    runs.push_back(run);
  }
  return runs;
}

StatusOr<std::vector<double>> ReadColumn(const std::string& path, int lines) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto rows, ReadLines(path, '\t', 2, lines));
  std::vector<double> values;
  for (const std::vector<std::string>& row : rows) {
    TIDEPOOL_ASSIGN_OR_RETURN(const double value, Number(path, static_cast<int64_t>(values.size() + 1), row[1]));
    values.push_back(value);
  }
  return values;
}

StatusOr<PublishedStep> StepOf64(const std::string& reference, const std::string& card, const std::string& model) {
  std::string name = card;
  for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
  std::shared_ptr<const profile::Bundle> bundle;
  if (reference.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(bundle, profile::OpenBundle(name));
  } else {
    const std::string path = reference + "/profiles/osre_profile_p100_v100_b64_nocudnn.csv";
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostFile));
    profile::Importer importer({.gpu = card});
    TIDEPOOL_RETURN_IF_ERROR(importer.Add(path, text));
    TIDEPOOL_ASSIGN_OR_RETURN(profile::Bundle imported, importer.Finish());
    TIDEPOOL_ASSIGN_OR_RETURN(const auto card_bundle, profile::OpenBundle(name));
    imported.manifest = card_bundle->manifest;
    imported.manifest.measured = true;
    bundle = std::make_shared<profile::Bundle>(std::move(imported));
  }
  const profile::Lookup lookup(bundle);
  TIDEPOOL_ASSIGN_OR_RETURN(const StepTimes times,
                            FindStepTimes(lookup, {.model = model, .batch = 64, .sample_bytes = kPictureBytes}));
  return PublishedStep{times.copy_seconds, times.compute_seconds, times.estimated};
}

}  // namespace tidepool::data::stalls
