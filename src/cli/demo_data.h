// What the demo works on: a model repository of mixed families with seeded weights, and a folder of JPEG pictures that show one
// shape each. Both are made once and used again while their recipe is the same.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidepool::cli {

struct DemoModel {
  std::string name, spec;
  int64_t weight_bytes = 0;
};

struct DemoDataOptions {
  std::string directory;  // models/, train/ and evaluation/ are made in it
  uint64_t seed = 1;
  int train_files = 1024;  // over all classes
  int evaluation_files = 160;
  std::function<void(const std::string&)> say;  // one line per part that is made; may be empty
};

struct DemoData {
  std::string repository, train_folder, evaluation_folder;
  std::vector<DemoModel> models;
  int64_t model_bytes = 0;  // weights of all models
  int classes = 0;
};

// Errors name the file that cannot be written.
StatusOr<DemoData> MakeDemoData(const DemoDataOptions& options);

// The names of the classes: what is drawn.
const std::vector<std::string>& DemoClasses();

// Rows of R, G, B bytes of one picture. Class, seed and index decide it: shape from the class, a hue that mostly goes with it,
// and any position, size, angle, background and noise.
struct DemoPicture {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;
};
DemoPicture DrawDemoPicture(int class_index, uint64_t seed, uint64_t index);

}  // namespace tidepool::cli
