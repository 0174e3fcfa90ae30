#include "cli/demo_data.h"

#include <filesystem>
#include <fstream>

#include "base/fd.h"
#include "base/units.h"
#include "data/jpeg.h"
#include "model/families.h"
#include "model/repository.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;

// Raised when the pictures drawn change, so that old ones are made anew.
constexpr int kPictureRecipe = 1;
constexpr int kQuality = 88;

constexpr char kBert[] = "bert:layers=5,width=128,heads=2,sequence=32";

// In the order of their share of the load, the most wanted first.
const std::vector<std::pair<std::string, std::string>>& ModelSpecs() {
  static const auto* const kSpecs = new std::vector<std::pair<std::string, std::string>>{
      {"bert-a", kBert},
      {"resnet18-a", "resnet18:classes=100,image=32,width=42"},
      {"bert-b", kBert},
      {"gpt2-a", "gpt2:layers=5,width=192,heads=3,vocab=11776,context=64,sequence=8"},
      {"bert-c", kBert},
      {"bert-d", kBert},
      {"resnet34-a", "resnet34:classes=100,image=32,width=30"},
      {"bert-e", kBert},
  };
  return *kSpecs;
}

Status MakeDirectories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  return error ? ErrnoError(error.value(), "cannot make the folder " + path.string()) : Status();
}

// The recipe lies beside what was made, written after it: a part that was cut short is made again. (Beside, not inside: every
// entry of a repository is a model, every entry of an ImageFolder a class.)
std::string MarkerOf(const std::string& folder) { return folder + ".recipe"; }

bool MadeBy(const std::string& folder, const std::string& recipe) {
  const auto text = ReadFile(MarkerOf(folder), 1 << 16);
  return text.ok() && *text == recipe && fs::is_directory(folder);
}

Status MakePictures(const fs::path& folder, uint64_t seed, int files) {
  std::error_code error;
  fs::remove_all(folder, error);
  const auto& classes = DemoClasses();
  for (const std::string& name : classes) TIDEPOOL_RETURN_IF_ERROR(MakeDirectories(folder / name));
  for (int i = 0; i < files; ++i) {
    const int class_index = i % static_cast<int>(classes.size());
    const DemoPicture picture = DrawDemoPicture(class_index, seed, static_cast<uint64_t>(i));
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string jpeg, data::EncodeJpeg(picture.rgb, picture.width, picture.height, kQuality));
    const std::string path = (folder / classes[class_index] / fmt::format("{:05}.jpg", i)).string();
    std::ofstream out(path, std::ios::binary);
    out.write(jpeg.data(), static_cast<std::streamsize>(jpeg.size()));
    out.close();
    if (!out) return Unavailable("cannot write the picture '{}'", path);
  }
  return {};
}

}  // namespace

StatusOr<DemoData> MakeDemoData(const DemoDataOptions& options) {
  const fs::path root = options.directory;
  const auto say = [&](const std::string& text) {
    if (options.say) options.say(text);
  };
  DemoData data{.repository = (root / "models").string(),
                .train_folder = (root / "train").string(),
                .evaluation_folder = (root / "evaluation").string(),
                .classes = static_cast<int>(DemoClasses().size())};

  std::string recipe = fmt::format("seed {}\n", options.seed);
  for (const auto& [name, spec] : ModelSpecs()) recipe += fmt::format("{} {}\n", name, spec);
  const bool models_made = MadeBy(data.repository, recipe);
  // Models of an older recipe would be served too.
  std::error_code ignored;
  if (!models_made) fs::remove_all(data.repository, ignored);
  TIDEPOOL_RETURN_IF_ERROR(MakeDirectories(data.repository));
  uint64_t seed = options.seed;
  for (const auto& [name, spec] : ModelSpecs()) {
    TIDEPOOL_ASSIGN_OR_RETURN(const model::Graph graph, model::BuildGraph(spec));
    data.models.push_back({.name = name, .spec = spec, .weight_bytes = graph.parameter_bytes()});
    data.model_bytes += graph.parameter_bytes();
    ++seed;
    if (models_made) continue;
    TIDEPOOL_RETURN_IF_ERROR(
        model::CreateModel({.repository = data.repository, .name = name, .spec = spec, .seed = seed, .overwrite = true}));
  }
  if (!models_made) {
    TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(MarkerOf(data.repository), recipe));
    say(fmt::format("made {} models, {} of weights", data.models.size(), FormatBytes(data.model_bytes)));
  }

  const std::pair<std::string, int> folders[] = {{data.train_folder, options.train_files},
                                                 {data.evaluation_folder, options.evaluation_files}};
  for (const auto& [folder, files] : folders) {
    // The two folders draw from different streams: no evaluation picture is a training picture.
    const uint64_t stream = options.seed * 2 + (folder == data.evaluation_folder ? 1 : 0);
    const std::string wanted = fmt::format("pictures {} stream {} files {}\n", kPictureRecipe, stream, files);
    if (MadeBy(folder, wanted)) continue;
    TIDEPOOL_RETURN_IF_ERROR(MakePictures(folder, stream, files));
    TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(MarkerOf(folder), wanted));
    say(fmt::format("drew {} JPEG files in {} classes into {}", files, data.classes, folder));
  }
  return data;
}

}  // namespace tidepool::cli
