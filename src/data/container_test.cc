#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "base/clock.h"
#include "data/containers.h"
#include "data/dataset.h"
#include "data/packed.h"
#include "data/testing.h"
#include "data/tf_example.h"

namespace tidepool::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kPictures = 10, kClasses = 3;

// The same ten pictures in each container, and how to read them.
struct Container {
  std::string kind;
  DiskOptions::Method method;
  bool direct;
};

std::string WriteContainer(const TempFolder& folder, const std::string& kind) {
  if (kind == "imagefolder") {
    // Sorted by class; the label of picture i is i * kClasses / kPictures, as in the others.
    for (int i = 0; i < kPictures; ++i)
      folder.Write(fmt::format("folder/c{}/{:02}.jpg", i * kClasses / kPictures, i), SmallJpeg(i));
    return "imagefolder:" + folder.path("folder");
  }
  if (kind == "webdataset") {
    for (int shard = 0; shard < 2; ++shard) {
      TarBuilder tar;
      for (int i = shard * 5; i < shard * 5 + 5; ++i) {
        tar.Add(fmt::format("pics/{:02}.cls", i), fmt::format("{}\n", i * kClasses / kPictures));
        tar.Add(fmt::format("pics/{:02}.json", i), "{}");
        tar.Add(fmt::format("pics/{:02}.JPG", i), SmallJpeg(i));
      }
      folder.Write(fmt::format("tar/x-{:03}.tar", shard), tar.Finish());
    }
    return "webdataset:" + folder.path("tar/x-{000..001}.tar");
  }
  if (kind == "tfrecord") {
    for (int shard = 0; shard < 2; ++shard) {
      std::string bytes;
      for (int i = shard * 5; i < shard * 5 + 5; ++i) bytes += TfFrame(TfExample(SmallJpeg(i), i * kClasses / kPictures));
      folder.Write(fmt::format("tf/train-{:05}-of-00002", shard), bytes);
    }
    return "tfrecord:" + folder.path("tf/train-*");
  }
  const auto source = OpenRecordSource(WriteContainer(folder, "imagefolder")).value();
  const PackJob job{
      .output = folder.path("x.tpk"), .group_bytes = 4 * static_cast<int64_t>(SmallJpeg(0).size()), .shard_bytes = 12000};
  const auto packed = PackRecords(*source, source->class_names(), job);
  EXPECT_TRUE(packed.ok()) << ToString(packed.status());
  return "packed:" + folder.path("x-*.tpk");
}

class ContainerTest : public ::testing::TestWithParam<Container> {
 protected:
  SourceOptions Options() const {
    return {.disk = {.method = GetParam().method, .direct = GetParam().direct}, .group_bytes = 8000};
  }
  std::unique_ptr<ExtentSource> Open() {
    auto source = OpenRecordSource(WriteContainer(folder_, GetParam().kind), Options());
    EXPECT_TRUE(source.ok()) << ToString(source.status());
    return *std::move(source);
  }
  static void ExpectPicture(const RecordSource& source, int64_t record) {
    const StatusOr<RecordView> view = source.Read(record);
    ASSERT_TRUE(view.ok()) << ToString(view.status());
    EXPECT_EQ(view->size_bytes(), source.SizeBytes(record).value());
    const StatusOr<LabelledPicture> sample = source.Parse(record, view->bytes());
    ASSERT_TRUE(sample.ok()) << ToString(sample.status());
    EXPECT_TRUE(AsText(sample->picture) == SmallJpeg(static_cast<int>(record))) << "record " << record;
    EXPECT_EQ(sample->label, record * kClasses / kPictures);
  }
  TempFolder folder_;
};

TEST_P(ContainerTest, GivesEveryPictureWithItsLabel) {
  const auto source = Open();
  ASSERT_EQ(source->size(), kPictures);
  EXPECT_EQ(source->classes(), kClasses);
  for (int64_t i = 0; i < kPictures; ++i) ExpectPicture(*source, i);
  EXPECT_EQ(source->Read(kPictures).status().code(), StatusCode::kOutOfRange);
  EXPECT_THAT(MessageOf(source->Read(-1).status()), HasSubstr("sample -1; the data set has 10"));
  EXPECT_EQ(source->fingerprint(), OpenRecordSource(WriteContainer(folder_, GetParam().kind), Options()).value()->fingerprint());
}

TEST_P(ContainerTest, GivesTheSameWhenRecordsAreAnnounced) {
  const auto source = Open();
  std::vector<int64_t> order(kPictures);
  for (int64_t i = 0; i < kPictures; ++i) order[i] = (i * 7 + 3) % kPictures;
  for (int round = 0; round < 3; ++round) {
    for (const int64_t i : order) source->WillNeed(i);
    for (const int64_t i : order) ExpectPicture(*source, i);
    EXPECT_EQ(source->stats().ahead.held_bytes, 0);
  }
  source->WillNeed(0);
  source->WillNeed(5);
  source->WontNeed(0);
  source->WontNeed(5);
  // What was under way goes when its read has ended.
  const absl::Time deadline = Clock::Real()->Now() + absl::Seconds(30);
  while (source->stats().ahead.held_bytes > 0 && Clock::Real()->Now() < deadline) ExpectPicture(*source, 0);
  EXPECT_EQ(source->stats().ahead.held_bytes, 0);
  EXPECT_GT(source->stats().read_bytes, 0);
}

TEST_P(ContainerTest, ReadsEachGroupOnceWhenItIsAnnounced) {
  const auto source = Open();
  std::vector<int64_t> first;
  for (int64_t i = 0; i < kPictures; i = source->Group(i).end) {
    EXPECT_EQ(source->Group(i).begin, i);
    EXPECT_EQ(source->Group(source->Group(i).end - 1), source->Group(i));
    first.push_back(i);
  }
  if (GetParam().kind == "imagefolder") {
    EXPECT_EQ(first.size(), size_t{kPictures});
  } else {
    EXPECT_LT(first.size(), size_t{kPictures});
  }
  const int64_t before = source->stats().reads;
  for (int64_t i = 0; i < kPictures; ++i) source->WillNeed(i);
  for (int64_t i = kPictures; i-- > 0;) ExpectPicture(*source, i);
  EXPECT_EQ(source->stats().reads - before, static_cast<int64_t>(first.size()));
  for (const int64_t i : first) {
    std::vector<RecordView> views;
    ASSERT_TRUE(source->ReadGroup(i, &views).ok());
    ASSERT_EQ(static_cast<int64_t>(views.size()), source->Group(i).size());
    for (size_t j = 0; j < views.size(); ++j) {
      const LabelledPicture sample = source->Parse(i + int64_t(j), views[j].bytes()).value();
      EXPECT_TRUE(AsText(sample.picture) == SmallJpeg(static_cast<int>(i + int64_t(j))));
    }
  }
}

TEST_P(ContainerTest, ServesManyThreadsAtOnce) {
  const auto source = Open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&source, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 200; ++i) {
        const int64_t record = random() % kPictures;
        if (random() % 2 == 0) {
          source->WillNeed(record);
          if (random() % 4 == 0) source->WontNeed(record);
        }
        ExpectPicture(*source, record);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(ContainerTest, KeepsToItsBudgetOfReadAheadBytes) {
  SourceOptions options = Options();
  options.disk.read_ahead_bytes = 8192;
  const auto source = OpenRecordSource(WriteContainer(folder_, GetParam().kind), options).value();
  for (int64_t i = 0; i < kPictures; ++i) source->WillNeed(i);
  for (int64_t i = 0; i < kPictures; ++i) ExpectPicture(*source, i);
  EXPECT_LE(source->stats().ahead.peak_held_bytes, GetParam().direct ? 12288 : 8192);
  EXPECT_EQ(source->stats().ahead.held_bytes, 0);
}

TEST_P(ContainerTest, NamesAVanishedOrTruncatedFile) {
  const std::string uri = WriteContainer(folder_, GetParam().kind);
  const auto source = OpenRecordSource(uri, Options()).value();
  const std::string place = source->Describe(7);
  for (const auto& file : std::filesystem::recursive_directory_iterator(folder_.path())) {
    if (!file.is_regular_file()) continue;
    const std::string path = file.path().string();
    if (GetParam().kind != "imagefolder" && path.find("/folder/") != std::string::npos) continue;
    if (GetParam().kind == "imagefolder") {
      std::filesystem::remove(path);
    } else {
      std::filesystem::resize_file(path, 600);
    }
  }
  for (const bool announced : {false, true}) {
    if (announced) source->WillNeed(7);
    const Status status = source->Read(7).status();
    EXPECT_EQ(status.code(), GetParam().kind == "imagefolder" ? StatusCode::kNotFound : StatusCode::kDataLoss)
        << ToString(status);
    EXPECT_THAT(MessageOf(status), HasSubstr(place.substr(0, place.find(" at byte"))));
    if (GetParam().kind != "imagefolder") {
      EXPECT_THAT(MessageOf(status), HasSubstr("the file ends at byte 600"));
    }
  }
  EXPECT_EQ(source->stats().ahead.held_bytes, 0);
  if (GetParam().kind != "imagefolder") {
    const Status opened = OpenRecordSource(uri, Options()).status();
    EXPECT_FALSE(opened.ok());
    EXPECT_THAT(MessageOf(opened), HasSubstr(folder_.path()));
  }
}

std::vector<Container> AllContainers() {
  std::vector<Container> all;
  for (const std::string kind : {"imagefolder", "webdataset", "tfrecord", "packed"}) {
    all.push_back({kind, DiskOptions::Method::kAuto, false});
    all.push_back({kind, DiskOptions::Method::kAuto, true});
    all.push_back({kind, DiskOptions::Method::kPread, false});
    all.push_back({kind, DiskOptions::Method::kPread, true});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, ContainerTest, ::testing::ValuesIn(AllContainers()), [](const auto& info) {
  return info.param.kind + (info.param.method == DiskOptions::Method::kPread ? "Pread" : "Auto") +
         (info.param.direct ? "Direct" : "");
});

TEST(ExpandShards, KnowsRangesListsWildcardsAndFolders) {
  const TempFolder folder;
  for (const char* name : {"b.tar", "a.tar", "c.txt"}) folder.Write(name, "x");
  EXPECT_THAT(ExpandShards("s-{08..11}.{a,b}", "").value(),
              ElementsAre("s-08.a", "s-08.b", "s-09.a", "s-09.b", "s-10.a", "s-10.b", "s-11.a", "s-11.b"));
  EXPECT_THAT(ExpandShards(folder.path(), ".tar").value(), ElementsAre(folder.path("a.tar"), folder.path("b.tar")));
  EXPECT_THAT(ExpandShards(folder.path("?.t*"), "").value().size(), 3u);
  EXPECT_EQ(ExpandShards(folder.path("*.none"), "").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(ExpandShards("x{1..", "").status()), HasSubstr("without a '}'"));
  EXPECT_THAT(MessageOf(ExpandShards("x{9..1}", "").status()), HasSubstr("names -7 files"));
  EXPECT_THAT(MessageOf(ExpandShards("x{a..b}", "").status()), HasSubstr("is no range"));
  EXPECT_THAT(MessageOf(ExpandShards("x{0..999}{0..999}", "").status()), HasSubstr("more than 100000 files"));
  EXPECT_THAT(MessageOf(ExpandShards("x{0..999999999999}", "").status()), HasSubstr("allowed: 1 to 100000"));
}

TEST(WebDataset, SkipsOtherFilesAndTellsWhatASampleLacks) {
  const TempFolder folder;
  TarBuilder tar;
  tar.Add("README", "no sample").Add("d/", "", '5');
  tar.Add("a.jpg", SmallJpeg(1)).Add("a.cls", "1");
  tar.Add("b.jpg", SmallJpeg(2));
  tar.Add("c.cls", "0").Add("c.txt", "text");
  tar.Add("d.jpg", SmallJpeg(2)).Add("d.jpeg", SmallJpeg(2)).Add("d.cls", "0");
  tar.Add("e.jpg", SmallJpeg(2)).Add("e.cls", "one");
  tar.Add("f.seg.png", "mask").Add("f.jpg", SmallJpeg(3)).Add("f.cls", " 2");
  const auto source = OpenWebDataset(folder.Write("x.tar", tar.Finish())).value();
  ASSERT_EQ(source->size(), 6);
  EXPECT_EQ(source->classes(), 2);
  const auto error = [&](int64_t record) {
    const RecordView view = source->Read(record).value();
    const StatusOr<LabelledPicture> parsed = source->Parse(record, view.bytes());
    return parsed.ok() ? "" : MessageOf(parsed.status());
  };
  EXPECT_EQ(error(0), "");
  EXPECT_THAT(error(1), HasSubstr(fmt::format("{}: the sample has 0 members .cls; needed: 1", source->Describe(1))));
  EXPECT_THAT(error(2), HasSubstr("has 0 members .jpg or .jpeg"));
  EXPECT_THAT(error(3), HasSubstr("has 2 members .jpg or .jpeg"));
  EXPECT_THAT(error(4), HasSubstr(".cls holds no label of 0 to 1"));
  EXPECT_THAT(error(5), HasSubstr(".cls holds no label"));  // digits only
  EXPECT_THAT(source->Describe(0), HasSubstr("x.tar at byte 1536"));
}

TEST(WebDataset, ReadsADamagedShardUpToTheDamageIfAskedTo) {
  const TempFolder folder;
  const std::string good = TarBuilder().Add("a.jpg", SmallJpeg(1)).Add("a.cls", "0").Finish();
  TarBuilder second;
  second.Add("b.jpg", SmallJpeg(2)).Add("b.cls", "1");
  const size_t whole = second.size();
  folder.Write("0.tar", second.Add("c.jpg", SmallJpeg(3)).Finish().substr(0, whole + 700));
  folder.Write("1.tar", good);
  EXPECT_THAT(MessageOf(OpenWebDataset(folder.path()).status()), HasSubstr("0.tar: the archive has"));
  const auto source = OpenWebDataset(folder.path(), {.allow_damaged = true}).value();
  EXPECT_EQ(source->size(), 2);
  ASSERT_EQ(source->faults().size(), 1u);
  EXPECT_THAT(source->faults()[0], HasSubstr(fmt::format("its member at byte {} goes on to byte", whole)));
}

TEST(TfRecord, ChecksBothChecksums) {
  const TempFolder folder;
  const std::string one = TfFrame(TfExample(SmallJpeg(1), 1)), two = TfFrame(TfExample(SmallJpeg(2), 2));
  std::string damaged = one + two;
  damaged[one.size() + 12 + 40] ^= 1;
  const auto source = OpenTfRecord(folder.Write("data", damaged), {.classes = 2, .first_label = 1}).value();
  EXPECT_TRUE(source->Read(0).ok());
  const Status data = source->Read(1).status();
  EXPECT_EQ(data.code(), StatusCode::kDataLoss);
  EXPECT_THAT(MessageOf(data),
              HasSubstr(fmt::format("data at byte {}: the data of {} bytes has checksum", one.size(), two.size() - 16)));
  std::vector<RecordView> views;
  ASSERT_TRUE(source->ReadGroup(1, &views).ok());
  EXPECT_GT(views[0].size_bytes(), 0);
  EXPECT_EQ(views[1].size_bytes(), 0);
  damaged[one.size() + 2] ^= 1;
  const Status length = OpenTfRecord(folder.Write("length", damaged)).status();
  EXPECT_THAT(MessageOf(length), HasSubstr(fmt::format("record at byte {}: the length field has checksum", one.size())));
  EXPECT_EQ(OpenTfRecord(folder.path("length"), {.allow_damaged = true}).value()->size(), 1);
  EXPECT_THAT(MessageOf(OpenTfRecord(folder.Write("jpeg", SmallJpeg(3))).status()), HasSubstr("no TFRecord file"));
  const Status cut = OpenTfRecord(folder.Write("cut", (one + two).substr(0, one.size() + two.size() - 3))).status();
  EXPECT_THAT(MessageOf(cut), HasSubstr(fmt::format("ends at byte {}, but the record at byte {} goes on to byte {}",
                                                    one.size() + two.size() - 3, one.size(), one.size() + two.size())));
  EXPECT_THAT(MessageOf(OpenTfRecord(folder.Write("half", one + two.substr(0, 5))).status()),
              HasSubstr("within the header of the record"));
}

TEST(TfRecord, TakesOtherUsualFeatureNamesAndTellsWhatIsMissing) {
  const TempFolder folder;
  const std::string tfds = Field(1, BytesFeature("image", SmallJpeg(4)) + IntFeature("label", 5));
  const std::string both = Field(1, IntFeature("label", 5) + IntFeature("image/class/label", 3) +
                                        BytesFeature("image", SmallJpeg(4)) + BytesFeature("image/encoded", SmallJpeg(5)));
  const std::string blind = Field(1, IntFeature("label", 5)), nameless = Field(1, BytesFeature("image", SmallJpeg(4)));
  const std::string path =
      folder.Write("x", TfFrame(tfds) + TfFrame(both) + TfFrame(blind) + TfFrame(nameless) + TfFrame("\x0a\xff"));
  const auto source = OpenTfRecord(path).value();
  EXPECT_EQ(source->classes(), 6);
  const auto parse = [&](int64_t i) { return source->Parse(i, source->Read(i).value().bytes()); };
  EXPECT_EQ(parse(0)->label, 5);
  EXPECT_EQ(parse(1)->label, 3);
  const RecordView kept = source->Read(1).value();
  EXPECT_EQ(AsText(source->Parse(1, kept.bytes())->picture), SmallJpeg(5));
  EXPECT_THAT(MessageOf(parse(2).status()), HasSubstr("no feature image/encoded or image"));
  EXPECT_THAT(MessageOf(parse(3).status()), HasSubstr("no label"));
  EXPECT_THAT(MessageOf(parse(4).status()), HasSubstr("ends within a number at byte 2"));
  EXPECT_EQ(parse(4).status().code(), StatusCode::kInvalidArgument);
}

TEST(TfExample, SurvivesRandomDamageAndNeverPointsOutside) {
  const std::string example = TfExample(SmallJpeg(1), 7);
  std::mt19937 random(3);
  for (int round = 0; round < 50000; ++round) {
    std::string damaged = example;
    for (int i = 0; i < 1 + round % 3; ++i)
      damaged[random() % std::min<size_t>(damaged.size(), round % 2 == 0 ? 60 : damaged.size())] = static_cast<char>(random());
    if (round % 5 == 0) damaged.resize(random() % damaged.size());
    const StatusOr<ExamplePicture> parsed = ParseExample(AsBytes(damaged));
    if (!parsed.ok()) {
      ASSERT_THAT(parsed.status().code(), ::testing::AnyOf(StatusCode::kInvalidArgument, StatusCode::kNotFound));
    } else if (!parsed->picture.empty()) {
      ASSERT_GE(parsed->picture.data(), AsBytes(damaged).data());
      ASSERT_LE(parsed->picture.data() + parsed->picture.size(), AsBytes(damaged).data() + damaged.size());
    }
  }
}

TEST(Crc32c, HasTheStandardsValues) {
  EXPECT_EQ(Crc32c(AsBytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(AsBytes(std::string(32, '\0'))), 0x8a9136aau);
  EXPECT_EQ(Crc32c({}), 0u);
  std::mt19937 random(1);
  std::string text;
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(Crc32c(AsBytes(text)), Crc32cPortable(AsBytes(text)));
    text.push_back(static_cast<char>(random()));
  }
}

}  // namespace
}  // namespace tidepool::data
