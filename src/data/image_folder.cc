// root/<class>/<file>.jpg|.jpeg: class ids are the sorted folder names, records are the sorted files of class after class.
#include <algorithm>
#include <filesystem>

#include "data/containers.h"

namespace tidepool::data {
namespace {

namespace fs = std::filesystem;

bool HasJpegName(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".jpg" || extension == ".jpeg";
}

// Names, sorted; hidden entries are left out.
StatusOr<std::vector<std::string>> SortedEntries(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", folder.string()));
  std::vector<std::string> names;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    std::string name = entries->path().filename().string();
    if (!name.starts_with('.')) names.push_back(std::move(name));
  }
  if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", folder.string()));
  std::sort(names.begin(), names.end());
  return names;
}

class ImageFolderSource : public ExtentSource {
 public:
  Status Open(const std::string& root, const SourceOptions& options) {
    Layout layout;
    layout.keep_open = false;
    layout.paths = PathTable(root);
    Fingerprint fingerprint;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> folders, SortedEntries(root));
    for (const std::string& folder : folders) {
      std::error_code error;
      if (!fs::is_directory(fs::path(root) / folder, error)) continue;
      TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> members, SortedEntries(fs::path(root) / folder));
      for (const std::string& member : members) {
        if (!HasJpegName(member)) continue;
        const std::string name = fmt::format("{}/{}", folder, member);
        layout.records.push_back(
            {.file = static_cast<int32_t>(layout.paths.size()), .label = static_cast<int32_t>(layout.classes)});
        layout.paths.Add(name);
        fingerprint.Add(name);
      }
      layout.class_names.push_back(folder);
      ++layout.classes;
    }
    if (layout.records.empty()) {
      return NotFound("'{}' holds no <class>/<file>.jpg or .jpeg ({} folders seen)", root, layout.classes);
    }
    layout.fingerprint = fingerprint.value();
    return Init(std::move(layout), options.disk);
  }

  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
    return LabelledPicture{.picture = bytes, .label = place(record).label};
  }
};

}  // namespace

StatusOr<std::unique_ptr<ExtentSource>> OpenImageFolderSource(const std::string& root, const SourceOptions& options) {
  auto source = std::make_unique<ImageFolderSource>();
  TIDEPOOL_RETURN_IF_ERROR(source->Open(root, options));
  return source;
}

}  // namespace tidepool::data
