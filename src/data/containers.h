// The formats in which pictures lie on disk, opened as RecordSources.
//
//   imagefolder:ROOT            ROOT/<class>/<file>.jpg; class ids are the sorted folder names
//   webdataset:x-{000..146}.tar tar shards; neighbouring files with one name before the first dot are a sample: .jpg or .jpeg,
//   and .cls tfrecord:train-*            tf.train.Example messages with image/encoded and image/class/label packed:x.tpk our own
//   container (docs/data.md): one index, checksums, groups that one disk read brings in
//
// Several shards are named by a folder, by {first..last} or {a,b} in braces and by *, ? and [] as a shell does. Opening reads the
// index, or walks over the headers of a format that has none; errors name the file and the byte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "data/extent_source.h"

namespace tidepool::data {

struct SourceOptions {
  DiskOptions disk;
  // Tar and TFRecord: neighbouring records are read together up to this many bytes, where the order of reading allows it.
  int64_t group_bytes = kMiB;
  // 0: as many as the labels tell. For TFRecord this saves reading every record once when it opens.
  int64_t classes = 0;
  int64_t first_label = 0;  // of tar and TFRecord: the label that becomes class 0
  // A damaged or truncated shard is used up to the damage, which faults() tells; otherwise it is an error.
  bool allow_damaged = false;
};

StatusOr<std::unique_ptr<ExtentSource>> OpenImageFolderSource(const std::string& root, const SourceOptions& options = {});
StatusOr<std::unique_ptr<ExtentSource>> OpenWebDataset(const std::string& shards, const SourceOptions& options = {});
StatusOr<std::unique_ptr<ExtentSource>> OpenTfRecord(const std::string& shards, const SourceOptions& options = {});
StatusOr<std::unique_ptr<ExtentSource>> OpenPacked(const std::string& shards, const SourceOptions& options = {});

// "KIND:PLACE", or a bare PLACE whose names tell the kind.
struct DataUri {
  std::string kind;  // imagefolder, webdataset, tfrecord, packed, text
  std::string place;
};
StatusOr<DataUri> ParseDataUri(const std::string& uri);
// INVALID_ARGUMENT for text, which has no records of pictures.
StatusOr<std::unique_ptr<ExtentSource>> OpenRecordSource(const std::string& uri, const SourceOptions& options = {});

// The files that `pattern` names, in order: braces first, then wildcards (sorted). A folder stands for its files that end with
// `suffix`. NOT_FOUND if there is none, INVALID_ARGUMENT for braces that do not parse or give more than 100,000 names.
StatusOr<std::vector<std::string>> ExpandShards(const std::string& pattern, std::string_view suffix);

}  // namespace tidepool::data
