#include "model/repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "model/families.h"
#include "model/safetensors.h"

namespace tidepool::model {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr char kTinyResNet[] = "resnet18:width=2,image=8,classes=3";
constexpr char kTinyGpt[] = "gpt2:layers=1,width=8,heads=2,vocab=16,context=8";
constexpr char kTinyBert[] = "bert:layers=1,width=8,heads=2,vocab=16,context=8,intermediate=32";

std::string Content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

uint64_t Hash(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

class Repositories : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/repositoryXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    repo_ = root_ + "/repo";
  }
  void TearDown() override { fs::remove_all(root_); }

  Status Create(const std::string& name, const std::string& spec = kTinyResNet, uint64_t seed = 0, int64_t version = 1) const {
    return CreateModel({.repository = repo_, .name = name, .spec = spec, .seed = seed, .version = version});
  }
  void Put(const std::string& path, const std::string& content) const {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path, std::ios::binary) << content;
  }
  // Writes all parameters of `spec`, each element `value`, with `rename` applied; returns the path.
  std::string PutCheckpoint(const std::string& path, const std::string& spec, float value,
                            const std::function<std::string(const std::string&)>& rename) const {
    const Graph graph = *BuildGraph(spec);
    std::vector<std::vector<float>> data;
    std::vector<TensorToWrite> tensors;
    data.reserve(graph.params.size());
    for (const Param& param : graph.params) {
      const std::string name = rename(param.name);
      if (name.empty()) continue;
      size_t elements = 1;
      for (const int64_t dim : param.shape) elements *= static_cast<size_t>(dim);
      data.emplace_back(elements * (SizeOf(param.dtype) / 4), param.dtype == DType::kF32 ? value : 0);
      tensors.push_back({name, param.dtype, param.shape, std::as_bytes(std::span(data.back()))});
    }
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    EXPECT_TRUE(WriteSafetensors(root_ + "/" + path, tensors, {}).ok());
    return root_ + "/" + path;
  }
  Status Import(const std::string& source, const std::string& spec, ImportReport* report, bool allow_partial = false) const {
    return ImportModel(
        {.repository = repo_, .name = "m", .source = source, .spec = spec, .overwrite = true, .allow_partial = allow_partial},
        report);
  }
  float FirstElement(const std::string& model, const std::string& tensor) const {
    const auto file = SafetensorsFile::Open(repo_ + "/" + model + "/1/model.safetensors");
    float value = -1;
    EXPECT_TRUE((*file)->ReadPart(**(*file)->Find(tensor), 0, std::as_writable_bytes(std::span(&value, 1))).ok());
    return value;
  }
  std::string root_, repo_;
};

std::string Same(const std::string& name) { return name; }

TEST_F(Repositories, CreatedModelsAreFoundAndPassTheCheck) {
  for (const auto& [name, spec] :
       {std::pair{"vision", kTinyResNet}, std::pair{"text", kTinyGpt}, std::pair{"encoder", kTinyBert}}) {
    const Status created = Create(name, spec);
    ASSERT_TRUE(created.ok()) << ToString(created);
  }
  const auto models = ScanRepository(repo_);
  ASSERT_TRUE(models.ok());
  ASSERT_EQ(models->size(), 3u);
  EXPECT_EQ((*models)[0].name, "encoder");
  EXPECT_EQ((*models)[2].spec, kTinyResNet);
  for (const RepositoryModel& model : *models) {
    EXPECT_TRUE(model.status.ok());
    EXPECT_THAT(model.versions, ElementsAre(1));
    const Status checked = CheckModel(repo_, model);
    EXPECT_TRUE(checked.ok()) << ToString(checked);
  }
}

TEST_F(Repositories, TheSameSeedGivesTheSameBytes) {
  ASSERT_TRUE(Create("a", kTinyResNet, 7).ok());
  ASSERT_TRUE(Create("b", kTinyResNet, 7).ok());
  ASSERT_TRUE(Create("c", kTinyResNet, 8).ok());
  EXPECT_EQ(Content(repo_ + "/a/1/model.safetensors"), Content(repo_ + "/b/1/model.safetensors"));
  EXPECT_NE(Content(repo_ + "/a/1/model.safetensors"), Content(repo_ + "/c/1/model.safetensors"));
  const auto file = SafetensorsFile::Open(repo_ + "/a/1/model.safetensors");
  EXPECT_EQ(Hash(Content((*file)->path()).substr((*file)->header().data_offset_bytes)), 17858826294290105284u);
}

TEST_F(Repositories, TensorsAreAlignedToTheirElements) {
  ASSERT_TRUE(Create("a", "resnet18:width=1,image=8,classes=3").ok());
  const auto file = SafetensorsFile::Open(repo_ + "/a/1/model.safetensors");
  for (const TensorEntry& tensor : (*file)->header().tensors)
    EXPECT_EQ(tensor.offset_bytes % SizeOf(tensor.dtype), 0) << tensor.name;
}

TEST_F(Repositories, ReplicasShareOneFolder) {
  ASSERT_TRUE(Create("m[3]").ok());
  const auto models = ScanRepository(repo_);
  ASSERT_EQ(models->size(), 3u);
  EXPECT_EQ((*models)[0].name, "m");
  EXPECT_EQ((*models)[1].name, "m-1");
  EXPECT_EQ((*models)[2].name, "m-2");
  for (const RepositoryModel& model : *models) {
    EXPECT_EQ(model.base_name, "m");
    EXPECT_EQ(model.WeightsPath(repo_, 1), repo_ + "/m/1/model.safetensors");
  }
  ASSERT_TRUE(Create("m-1").ok());
  const auto taken = FindModel(repo_, "m");
  EXPECT_THAT(MessageOf(taken->status), HasSubstr("replicas = 3 of 'm' makes the name 'm-1', which a folder has"));
  EXPECT_EQ(ScanRepository(repo_)->size(), 2u);
}

TEST_F(Repositories, WriteServingLimitsAndReadThemBack) {
  CreateOptions options{.repository = repo_, .name = "m", .spec = kTinyResNet};
  options.serving = {.max_batch_size = 4,
                     .queue_limit = 10,
                     .slo = absl::Milliseconds(250),
                     .batch_delay = absl::Microseconds(1500),
                     .replicas = 2};
  ASSERT_TRUE(CreateModel(options).ok());
  const ServingConfig serving = FindModel(repo_, "m-1")->serving;
  EXPECT_EQ(serving.max_batch_size, 4);
  EXPECT_EQ(serving.queue_limit, 10);
  EXPECT_EQ(serving.slo, absl::Milliseconds(250));
  EXPECT_EQ(serving.batch_delay, absl::Microseconds(1500));
  EXPECT_EQ(serving.replicas, 2);
  options.overwrite = true;
  options.serving = {.max_batch_size = 0, .slo = absl::Hours(2), .replicas = 5000};
  EXPECT_THAT(MessageOf(CreateModel(options)), AllOf(HasSubstr("serving.max_batch_size is 0; allowed: 1 to 65536"),
                                                     HasSubstr("serving.slo is 7200000000us; allowed: 0 to 1h"),
                                                     HasSubstr("replicas is 5000; allowed: 1 to 1024")));
}

TEST_F(Repositories, HoldVersionsInAscendingOrder) {
  for (const int64_t version : {10, 2, 1}) ASSERT_TRUE(Create("m", kTinyResNet, 0, version).ok());
  fs::create_directories(repo_ + "/m/3");    // no weights yet
  fs::create_directories(repo_ + "/m/007");  // not a version
  EXPECT_THAT(FindModel(repo_, "m")->versions, ElementsAre(1, 2, 10));
}

TEST_F(Repositories, RefuseToReplaceWhatIsThere) {
  ASSERT_TRUE(Create("m").ok());
  const Status again = Create("m");
  EXPECT_EQ(again.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(MessageOf(again), HasSubstr("/m/1/model.safetensors' exists; overwrite it, or choose another version"));
  const Status other = Create("m", kTinyGpt, 0, 2);
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(other), HasSubstr("all versions of a model have one spec"));
  const Status replicas = Create("m[4]", kTinyResNet, 0, 2);
  EXPECT_EQ(replicas.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(replicas), HasSubstr("exists with other serving limits"));
  EXPECT_TRUE(CreateModel({.repository = repo_, .name = "m", .spec = kTinyGpt, .overwrite = true}).ok());
  EXPECT_EQ(FindModel(repo_, "m")->spec, kTinyGpt);
}

TEST_F(Repositories, RefuseNamesThatAreNotNames) {
  for (const char* name :
       {"", "a/b", "..", ".hidden", "a b", "m[", "m[]", "m[0]", "m[x]", "m[2", "m[1025]", "m[2]3", "[2]", "m\n"}) {
    const Status status = Create(name);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(MessageOf(status), HasSubstr("allowed: ")) << name;
  }
  EXPECT_THAT(MessageOf(Create("a/b")), HasSubstr("model name 'a/b' is not allowed; allowed: 1 to 128 of"));
  EXPECT_THAT(MessageOf(Create("m[0]")),
              HasSubstr("'m[0]' is not a model name with replicas; allowed: name[N] with N from 1 to 1024"));
  EXPECT_THAT(MessageOf(Create("m", kTinyResNet, 0, 0)), HasSubstr("version is 0; allowed: 1 or more"));
  EXPECT_THAT(MessageOf(Create("m", "vgg")), HasSubstr("model 'vgg' is unknown"));
  EXPECT_FALSE(fs::exists(repo_));
}

TEST_F(Repositories, ListBrokenModelsWithTheirReasonBesideTheOthers) {
  ASSERT_TRUE(Create("good").ok());
  Put("repo/empty/readme", "");
  Put("repo/notoml/model.toml", "spec = [");
  Put("repo/nospec/model.toml", "replicas = 2\n");
  Put("repo/badspec/model.toml", "spec = \"vgg\"\n");
  Put("repo/noversion/model.toml", "spec = \"resnet18\"\n");
  Put("repo/unknown/model.toml", "spec = \"resnet18\"\ncolour = 1\n[serving]\nspeed = 2\n");
  Put("repo/range/model.toml", "spec = \"resnet18\"\nreplicas = 0\n[serving]\nqueue_limit = 0\n");
  Put("repo/odd name/model.toml", "spec = \"resnet18\"\n");
  Put("repo/file", "not a folder");
  Put("repo/.git/config", "");
  const auto models = ScanRepository(repo_);
  ASSERT_TRUE(models.ok());
  std::map<std::string, Status> status;
  for (const RepositoryModel& model : *models) status[model.name] = model.status;
  EXPECT_EQ(status.size(), 9u);
  EXPECT_TRUE(status["good"].ok());
  EXPECT_EQ(status["empty"].code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(status["empty"]), HasSubstr("empty/model.toml' is missing; it says which network the model is"));
  EXPECT_THAT(MessageOf(status["notoml"]), HasSubstr("model.toml:1"));
  EXPECT_THAT(MessageOf(status["nospec"]), HasSubstr("key 'spec' is missing"));
  EXPECT_THAT(MessageOf(status["badspec"]), HasSubstr("model 'vgg' is unknown"));
  EXPECT_THAT(MessageOf(status["noversion"]),
              HasSubstr("has no version; allowed: folders 1, 2, ... that hold model.safetensors"));
  EXPECT_THAT(MessageOf(status["unknown"]),
              AllOf(HasSubstr("model.toml:2: key 'colour' is unknown"), HasSubstr("key 'serving.speed' is unknown")));
  EXPECT_THAT(MessageOf(status["range"]),
              AllOf(HasSubstr("replicas is 0; allowed: 1 to 1024"), HasSubstr("serving.queue_limit is 0")));
  EXPECT_THAT(MessageOf(status["odd name"]), HasSubstr("folder name 'odd name' is not a model name"));
  EXPECT_FALSE(CheckModel(repo_, *FindModel(repo_, "badspec")).ok());
}

TEST_F(Repositories, ThatCannotBeReadAreErrors) {
  EXPECT_EQ(ScanRepository(repo_).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(Create("vision").ok());
  const Status absent = FindModel(repo_, "vison").status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(absent), HasSubstr("model 'vison' is not in the repository"));
  EXPECT_THAT(MessageOf(absent), HasSubstr("did you mean 'vision'?"));
}

TEST_F(Repositories, TheCheckListsEveryFaultOfEveryVersion) {
  ASSERT_TRUE(Create("m").ok());
  PutCheckpoint("repo/m/2/model.safetensors", "resnet18:width=2,image=8,classes=4", 0, [](const std::string& name) {
    return name == "bn1.weight" ? "" : name == "conv1.weight" ? std::string("conv0.weight") : name;
  });
  Put("repo/m/3/model.safetensors", "rubbish!");
  const std::string text = MessageOf(CheckModel(repo_, *FindModel(repo_, "m")));
  EXPECT_THAT(text, HasSubstr("model 'm' has 6 faults"));
  EXPECT_THAT(text, HasSubstr("version 2: tensor 'bn1.weight' is missing"));
  EXPECT_THAT(text, HasSubstr("version 2: tensor 'conv1.weight' is missing"));
  EXPECT_THAT(text, HasSubstr("version 2: tensor 'conv0.weight' is not of resnet18"));
  EXPECT_THAT(text, HasSubstr("version 2: tensor 'fc.weight' is F32 [4,16] in the file but F32 [3,16] in the network"));
  EXPECT_THAT(text, HasSubstr("version 3: '"));
}

TEST_F(Repositories, ImportABareFile) {
  ImportReport report;
  const std::string file = PutCheckpoint("resnet.safetensors", kTinyResNet, 2.5f, [](const std::string& name) {
    return name.ends_with("num_batches_tracked") ? "" : name;
  });
  const Status imported = Import(file, kTinyResNet, &report);
  ASSERT_TRUE(imported.ok()) << ToString(imported);
  EXPECT_EQ(report.loaded.size(), 102u);
  EXPECT_TRUE(report.missing.empty());
  EXPECT_EQ(FirstElement("m", "layer4.1.conv2.weight"), 2.5f);
  EXPECT_TRUE(CheckModel(repo_, *FindModel(repo_, "m")).ok());
  EXPECT_THAT(MessageOf(Import(file, "", &report)), HasSubstr("does not say what network it holds; give a spec"));
}

TEST_F(Repositories, ImportListsWhatIsMissingUnexpectedAndMismatched) {
  ImportReport report;
  const std::string file =
      PutCheckpoint("resnet.safetensors", "resnet18:width=2,image=8,classes=5", 1, [](const std::string& name) {
        return name == "bn1.bias" ? "" : name == "conv1.weight" ? std::string("stem.weight") : name;
      });
  const Status refused = Import(file, kTinyResNet, &report);
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(refused), AllOf(HasSubstr("2 missing: conv1.weight, bn1.bias"), HasSubstr("1 unexpected: stem.weight"),
                                        HasSubstr("2 mismatched: ")));
  EXPECT_THAT(report.missing, ElementsAre("conv1.weight", "bn1.bias"));
  EXPECT_THAT(report.unexpected, ElementsAre("stem.weight"));
  EXPECT_THAT(report.mismatched,
              ::testing::UnorderedElementsAre("tensor 'fc.weight' is F32 [5,16] in the file but F32 [3,16] in the network",
                                              "tensor 'fc.bias' is F32 [5] in the file but F32 [3] in the network"));
  EXPECT_FALSE(fs::exists(repo_ + "/m"));

  ASSERT_TRUE(Import(file, kTinyResNet, &report, true).ok());
  EXPECT_EQ(report.missing.size(), 2u);
  ASSERT_TRUE(Create("seeded").ok());
  EXPECT_EQ(FirstElement("m", "conv1.weight"), FirstElement("seeded", "conv1.weight"));
  EXPECT_EQ(FirstElement("m", "fc.weight"), FirstElement("seeded", "fc.weight"));
  EXPECT_EQ(FirstElement("m", "bn1.weight"), 1);
}

TEST_F(Repositories, ImportRefusesAFileThatHasNothingOfTheNetworkEvenPartially) {
  ImportReport report;
  const std::string file = PutCheckpoint("x.safetensors", kTinyBert, 1, Same);
  EXPECT_THAT(MessageOf(Import(file, kTinyResNet, &report, true)), HasSubstr("no tensor of '"));
}

TEST_F(Repositories, ImportConvertsHalfPrecision) {
  const Graph graph = *BuildGraph(kTinyGpt);
  for (const auto& [type, bits] : {std::pair{DType::kF16, uint16_t{0xc100}}, std::pair{DType::kBF16, uint16_t{0xc020}}}) {
    std::vector<std::vector<uint16_t>> data;
    std::vector<TensorToWrite> tensors;
    data.reserve(graph.params.size());
    for (const Param& param : graph.params) {
      size_t elements = 1;
      for (const int64_t dim : param.shape) elements *= static_cast<size_t>(dim);
      data.emplace_back(elements, bits);
      tensors.push_back({param.name, type, param.shape, std::as_bytes(std::span(data.back()))});
    }
    ASSERT_TRUE(WriteSafetensors(root_ + "/half", tensors, {}).ok());
    ImportReport report;
    ASSERT_TRUE(Import(root_ + "/half", kTinyGpt, &report).ok());
    EXPECT_EQ(FirstElement("m", "wte.weight"), -2.5f);
  }
}

constexpr char kGptConfig[] = R"({"model_type":"gpt2","n_layer":1,"n_embd":8,"n_head":2,"vocab_size":16,"n_positions":8,
  "resid_pdrop":0.1,"activation_function":"gelu_new","n_inner":null})";
constexpr char kBertConfig[] =
    R"({"model_type":"bert","num_hidden_layers":1,"hidden_size":8,"num_attention_heads":2,"vocab_size":16,
  "max_position_embeddings":8,"intermediate_size":32,"hidden_dropout_prob":0.1,"hidden_act":"gelu","type_vocab_size":2,"layer_norm_eps":1e-12})";

TEST_F(Repositories, ImportAHuggingFaceFolderOfGpt2) {
  Put("hf/config.json", kGptConfig);
  PutCheckpoint("hf/model.safetensors", kTinyGpt, 3, [](const std::string& name) { return "transformer." + name; });
  ImportReport report;
  const Status imported = Import(root_ + "/hf", "", &report);
  ASSERT_TRUE(imported.ok()) << ToString(imported);
  EXPECT_EQ(BuildGraph(report.spec)->config, BuildGraph(kTinyGpt)->config);
  EXPECT_EQ(FirstElement("m", "h.0.attn.c_attn.weight"), 3);
  // A given spec wins over config.json.
  ASSERT_TRUE(Import(root_ + "/hf", std::string(kTinyGpt) + ",sequence=4", &report).ok());
  EXPECT_EQ(FindModel(repo_, "m")->spec, std::string(kTinyGpt) + ",sequence=4");
}

TEST_F(Repositories, ImportIgnoresMasksAndASharedHead) {
  Put("hf/config.json", kGptConfig);
  const std::vector<float> mask(64, 1), head(128, 1);
  const std::vector<TensorToWrite> extra = {{"h.0.attn.bias", DType::kF32, {1, 1, 8, 8}, std::as_bytes(std::span(mask))},
                                            {"lm_head.weight", DType::kF32, {16, 8}, std::as_bytes(std::span(head))}};
  PutCheckpoint("hf/model-1.safetensors", kTinyGpt, 3, Same);
  ASSERT_TRUE(WriteSafetensors(root_ + "/hf/model-2.safetensors", extra, {}).ok());
  Put("hf/model.safetensors.index.json",
      R"({"weight_map":{"wte.weight":"model-1.safetensors","lm_head.weight":"model-2.safetensors"}})");
  ImportReport report;
  const Status imported = Import(root_ + "/hf", "", &report);
  ASSERT_TRUE(imported.ok()) << ToString(imported);
  EXPECT_THAT(report.ignored, ::testing::UnorderedElementsAre("h.0.attn.bias", "lm_head.weight"));
}

TEST_F(Repositories, ImportAHuggingFaceFolderOfBertWithOldNames) {
  Put("hf/config.json", kBertConfig);
  PutCheckpoint("hf/model.safetensors", kTinyBert, 4, [](std::string name) {
    if (const size_t at = name.find("LayerNorm.weight"); at != std::string::npos)
      name.replace(at, std::string::npos, "LayerNorm.gamma");
    if (const size_t at = name.find("LayerNorm.bias"); at != std::string::npos)
      name.replace(at, std::string::npos, "LayerNorm.beta");
    return "bert." + name;
  });
  ImportReport report;
  const Status imported = Import(root_ + "/hf", "", &report);
  ASSERT_TRUE(imported.ok()) << ToString(imported);
  EXPECT_EQ(FirstElement("m", "encoder.layer.0.output.LayerNorm.weight"), 4);
  EXPECT_TRUE(report.ignored.empty());
}

TEST_F(Repositories, ImportSetsTheClassesOfABertClassifier) {
  std::string config = kBertConfig;
  config.insert(1, R"("architectures":["BertForSequenceClassification"],"id2label":{"0":"a","1":"b","2":"c"},)");
  Put("hf/config.json", config);
  PutCheckpoint("hf/model.safetensors", std::string(kTinyBert) + ",classes=3", 4,
                [](const std::string& name) { return name.starts_with("classifier") ? name : "bert." + name; });
  ImportReport report;
  const Status imported = Import(root_ + "/hf", "", &report);
  ASSERT_TRUE(imported.ok()) << ToString(imported);
  EXPECT_EQ(FirstElement("m", "classifier.weight"), 4);
}

TEST_F(Repositories, ImportNamesATensorThatComesTwice) {
  Put("hf/config.json", kGptConfig);
  PutCheckpoint("hf/a.safetensors", kTinyGpt, 3, Same);
  PutCheckpoint("hf/b.safetensors", kTinyGpt, 3,
                [](const std::string& name) { return name == "ln_f.bias" ? "transformer.ln_f.bias" : ""; });
  Put("hf/model.safetensors.index.json", R"({"weight_map":{"x":"a.safetensors","y":"b.safetensors"}})");
  ImportReport report;
  EXPECT_THAT(MessageOf(Import(root_ + "/hf", "", &report)),
              HasSubstr("1 unexpected: transformer.ln_f.bias (a second tensor for ln_f.bias)"));
}

struct BadFolder {
  std::string config, index, text;
};
class BadFolders : public Repositories, public ::testing::WithParamInterface<BadFolder> {};

TEST_P(BadFolders, AreRefusedWithTheReason) {
  if (!GetParam().config.empty()) Put("hf/config.json", GetParam().config);
  if (!GetParam().index.empty()) Put("hf/model.safetensors.index.json", GetParam().index);
  if (GetParam().index.empty()) PutCheckpoint("hf/model.safetensors", kTinyGpt, 1, Same);
  ImportReport report;
  const Status status = Import(root_ + "/hf", "", &report);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(MessageOf(status), HasSubstr(GetParam().text));
  EXPECT_FALSE(fs::exists(repo_));
}

std::string With(std::string config, const std::string& addition) { return config.insert(1, addition + ","); }

INSTANTIATE_TEST_SUITE_P(
    Import, BadFolders,
    ::testing::Values(
        BadFolder{"", "", "config.json"}, BadFolder{"[1]", "", "config.json is not a JSON object"},
        BadFolder{"{", "", "config.json is not a JSON object"},
        BadFolder{std::string(1000, '['), "", "config.json nests deeper than 32 levels"},
        BadFolder{"{}", "", "config.json has no model_type; allowed: \"gpt2\", \"bert\""},
        BadFolder{R"({"model_type":"llama"})", "", "model_type in config.json is \"llama\"; allowed: \"gpt2\", \"bert\""},
        BadFolder{R"({"model_type":"gpt2"})", "", "n_layer is missing; n_embd is missing"},
        BadFolder{R"({"model_type":"bert","num_hidden_layers":"x"})", "", "num_hidden_layers is \"x\"; allowed: an integer"},
        BadFolder{With(kGptConfig, R"("scale_attn_by_inverse_layer_idx":true)"), "",
                  "scale_attn_by_inverse_layer_idx is true; allowed: false"},
        BadFolder{With(kGptConfig, R"("tie_word_embeddings":false)"), "", "tie_word_embeddings is false; allowed: true"},
        BadFolder{With(kGptConfig, R"("layer_norm_epsilon":0.1)"), "", "layer_norm_epsilon is 0.1; allowed: 1e-05"},
        BadFolder{R"({"model_type":"gpt2","n_layer":1,"n_embd":9,"n_head":2,"vocab_size":16,"n_positions":8})", "",
                  "allowed: a divisor of the width"},
        BadFolder{kGptConfig, "{}", "has no object 'weight_map'"}, BadFolder{kGptConfig, R"({"weight_map":{}})", "is empty"},
        BadFolder{kGptConfig, R"({"weight_map":{"a":1}})", "is 1 for 'a'; allowed: a file name"},
        BadFolder{kGptConfig, R"({"weight_map":{"a":"../secret"}})",
                  "names the file \"../secret\"; allowed: a file of the same folder"},
        BadFolder{kGptConfig, R"({"weight_map":{"a":"absent.safetensors"}})", "absent.safetensors"}));

TEST_F(Repositories, ImportDoesNotReadPickles) {
  Put("hf/config.json", kGptConfig);
  Put("hf/pytorch_model.bin", "x");
  ImportReport report;
  EXPECT_THAT(MessageOf(Import(root_ + "/hf", "", &report)),
              HasSubstr("pytorch_model.bin is a pickle, which can run code when it is read"));
  fs::remove(root_ + "/hf/pytorch_model.bin");
  EXPECT_EQ(Import(root_ + "/hf", "", &report).code(), StatusCode::kNotFound);
  EXPECT_EQ(Import(root_ + "/absent", kTinyGpt, &report).code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace tidepool::model
