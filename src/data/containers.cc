#include "data/containers.h"

#include <glob.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

namespace tidepool::data {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostShards = 100'000;

bool AllDigits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// The alternatives between one pair of braces: "a,b" or "000..146" (with the zeros of the first number).
StatusOr<std::vector<std::string>> Alternatives(std::string_view inside, const std::string& pattern) {
  std::vector<std::string> found;
  const size_t dots = inside.find("..");
  if (dots == std::string_view::npos) {
    for (size_t begin = 0; begin <= inside.size();) {
      const size_t comma = std::min(inside.find(',', begin), inside.size());
      found.emplace_back(inside.substr(begin, comma - begin));
      begin = comma + 1;
    }
    return found;
  }
  const std::string_view first = inside.substr(0, dots), last = inside.substr(dots + 2);
  int64_t from = 0, to = 0;
  if (!AllDigits(first) || !AllDigits(last) || first.size() > 12 || last.size() > 12) {
    return InvalidArgument("'{{{}}}' in '{}' is no range; allowed: {{000..146}} or {{a,b}}", inside, pattern);
  }
  std::from_chars(first.data(), first.data() + first.size(), from);
  std::from_chars(last.data(), last.data() + last.size(), to);
  if (to < from || to - from >= static_cast<int64_t>(kMostShards)) {
    return InvalidArgument("'{{{}}}' in '{}' names {} files; allowed: 1 to {}", inside, pattern, to - from + 1, kMostShards);
  }
  for (int64_t i = from; i <= to; ++i) found.push_back(fmt::format("{:0{}}", i, first.size()));
  return found;
}

StatusOr<std::vector<std::string>> ExpandBraces(const std::string& pattern) {
  std::vector<std::string> done, open = {pattern};
  while (!open.empty()) {
    std::vector<std::string> next;
    for (const std::string& each : open) {
      const size_t begin = each.find('{');
      if (begin == std::string::npos) {
        done.push_back(each);
        continue;
      }
      const size_t end = each.find('}', begin);
      if (end == std::string::npos) return InvalidArgument("'{}' has a '{{' without a '}}'", pattern);
      TIDEPOOL_ASSIGN_OR_RETURN(const auto alternatives,
                                Alternatives(std::string_view(each).substr(begin + 1, end - begin - 1), pattern));
      for (const std::string& alternative : alternatives)
        next.push_back(each.substr(0, begin) + alternative + each.substr(end + 1));
      if (next.size() + done.size() > kMostShards) return InvalidArgument("'{}' names more than {} files", pattern, kMostShards);
    }
    open = std::move(next);
  }
  return done;
}

StatusOr<std::vector<std::string>> FolderFiles(const std::string& folder, std::string_view suffix) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code ignored;
    if (!name.starts_with('.') && name.ends_with(suffix) && entry->is_regular_file(ignored))
      files.push_back(entry->path().string());
  }
  if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", folder));
  std::sort(files.begin(), files.end());
  if (files.empty()) return NotFound("the folder '{}' holds no file that ends with '{}'", folder, suffix);
  return files;
}

// From the name alone, or what a folder holds.
StatusOr<std::string> GuessKind(const std::string& place) {
  const std::string name = fs::path(place).filename().string();
  if (name.ends_with(".tar")) return std::string("webdataset");
  if (name.ends_with(".tpk")) return std::string("packed");
  if (name.find(".tfrecord") != std::string::npos || name.find("-of-") != std::string::npos) return std::string("tfrecord");
  std::error_code error;
  if (!fs::is_directory(place, error)) return std::string("text");
  for (fs::directory_iterator entry(place, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_directory(ignored)) return std::string("imagefolder");
    const std::string inside = entry->path().filename().string();
    if (inside.ends_with(".tar")) return std::string("webdataset");
    if (inside.ends_with(".tpk")) return std::string("packed");
    if (inside.find(".tfrecord") != std::string::npos) return std::string("tfrecord");
  }
  return std::string("text");
}

}  // namespace

StatusOr<std::vector<std::string>> ExpandShards(const std::string& pattern, std::string_view suffix) {
  std::error_code error;
  if (fs::is_directory(pattern, error)) return FolderFiles(pattern, suffix);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ExpandBraces(pattern));
  std::vector<std::string> files;
  for (const std::string& name : names) {
    // A name without wildcards may be of a file that does not exist; opening it tells.
    if (name.find_first_of("*?[") == std::string::npos) {
      files.push_back(name);
      continue;
    }
    glob_t found = {};
    const int failed = ::glob(name.c_str(), 0, nullptr, &found);
    for (size_t i = 0; failed == 0 && i < found.gl_pathc; ++i) files.emplace_back(found.gl_pathv[i]);
    ::globfree(&found);
    if (files.size() > kMostShards) return InvalidArgument("'{}' names more than {} files", pattern, kMostShards);
  }
  if (files.empty()) return NotFound("no file is named by '{}'", pattern);
  return files;
}

StatusOr<DataUri> ParseDataUri(const std::string& uri) {
  const size_t colon = uri.find(':');
  if (colon == std::string::npos || uri.find('/') < colon) {
    TIDEPOOL_ASSIGN_OR_RETURN(std::string kind, GuessKind(uri));
    return DataUri{.kind = std::move(kind), .place = uri};
  }
  DataUri parsed{.kind = uri.substr(0, colon), .place = uri.substr(colon + 1)};
  for (const std::string_view known : {"imagefolder", "webdataset", "tfrecord", "packed", "text"}) {
    if (parsed.kind == known) return parsed;
  }
  return InvalidArgument(
      "data '{}' is of kind '{}'; allowed: imagefolder:PATH, webdataset:SHARDS, tfrecord:SHARDS, packed:SHARDS, text:PATH, PATH",
      uri, parsed.kind);
}

StatusOr<std::unique_ptr<ExtentSource>> OpenRecordSource(const std::string& uri, const SourceOptions& options) {
  TIDEPOOL_ASSIGN_OR_RETURN(const DataUri parsed, ParseDataUri(uri));
  if (parsed.kind == "imagefolder") return OpenImageFolderSource(parsed.place, options);
  if (parsed.kind == "webdataset") return OpenWebDataset(parsed.place, options);
  if (parsed.kind == "tfrecord") return OpenTfRecord(parsed.place, options);
  if (parsed.kind == "packed") return OpenPacked(parsed.place, options);
  return InvalidArgument("'{}' is text; needed: pictures (imagefolder, webdataset, tfrecord or packed)", uri);
}

}  // namespace tidepool::data
