// The recorded cases of tests/data/qemu, in both modes; and the scorer itself: an observation that
// is wrong must fail, in a message that says what and where.
#include "guest_svc/client/conformance.h"

#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/load/line_reader.h"
#include "nlohmann/json.hpp"

namespace viommu::conformance {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr size_t kMaxLine = 8 << 20;

std::string DataFile(const std::string& suite) {
  return std::string(VIOMMU_TEST_DATA) + "/qemu/" + suite + "-seed1.jsonl.gz";
}

struct Suite {
  const char* name;
  uint64_t cases;
};
const Suite kSuites[] = {{"translation", 420}, {"invalidation", 200}, {"iq", 160}, {"shadow", 150}};

class RecordedCasesTest : public ::testing::TestWithParam<Suite> {};

TEST_P(RecordedCasesTest, AllPassWithQuirks) {
  const auto report = RunFile(DataFile(GetParam().name), {.qemu_quirks = true});
  ASSERT_TRUE(report.ok()) << report.status();
  for (const Verdict& v : report->verdicts) {
    EXPECT_EQ(v.kind, Verdict::Kind::kPassed) << v.case_id << ": " << v.first_difference;
  }
  EXPECT_EQ(report->Count(Verdict::Kind::kPassed), GetParam().cases);
}

TEST_P(RecordedCasesTest, WithoutQuirksOnlyDocumentedDeparturesDiffer) {
  const auto report = RunFile(DataFile(GetParam().name), {});
  ASSERT_TRUE(report.ok()) << report.status();
  uint64_t departs = 0;
  for (const Verdict& v : report->verdicts) {
    EXPECT_NE(v.kind, Verdict::Kind::kFailed) << v.case_id << ": " << v.first_difference;
    if (v.kind != Verdict::Kind::kDeparts) continue;
    ++departs;
    EXPECT_FALSE(v.departures.empty()) << v.case_id;
    EXPECT_FALSE(v.first_difference.empty()) << v.case_id;
  }
  EXPECT_GT(departs, 0u);
  EXPECT_GT(report->Count(Verdict::Kind::kPassed), departs / 4);
  EXPECT_EQ(report->verdicts.size(), GetParam().cases);
}

INSTANTIATE_TEST_SUITE_P(Suites, RecordedCasesTest, ::testing::ValuesIn(kSuites),
                         [](const auto& suite) { return suite.param.name; });

// Every id of the table in iommu_core/hw/README.md has a name, and no two the same.
TEST(DepartureTest, NamesAreThoseOfTheTable) {
  std::ifstream in(std::string(VIOMMU_TEST_DATA) + "/../../iommu_core/hw/README.md");
  const std::string readme{std::istreambuf_iterator<char>(in), {}};
  std::set<std::string> names;
  for (int i = 0; i <= static_cast<int>(Departure::kShadowNarrowedStays); ++i) {
    const std::string name(DepartureName(static_cast<Departure>(i)));
    EXPECT_NE(name, "unknown");
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_THAT(readme, HasSubstr("| `" + name + "` |"));
  }
}

// The first case of a suite for which `change` found something to falsify.
class ScorerTest : public ::testing::Test {
 protected:
  // `change` returns true once it has changed the step.
  void ExpectFailure(const std::string& suite, const std::function<bool(Json& step)>& change,
                     const std::string& text) {
    auto lines = LineReader::Open(DataFile(suite), kMaxLine);
    ASSERT_TRUE(lines.ok());
    absl::string_view line;
    int changed_cases = 0;
    while (changed_cases < 5 && (*lines)->Next(&line)) {
      Json json = Json::parse(line.begin(), line.end());
      bool changed = false;
      size_t where = 0;
      for (size_t i = 0; i < json["steps"].size() && !changed; ++i) {
        changed = change(json["steps"][i]);
        where = i;
      }
      if (!changed) continue;
      ++changed_cases;
      const auto parsed = ParseCase(json.dump());
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      for (const bool quirks : {false, true}) {
        const Verdict v = RunCase(*parsed, {.qemu_quirks = quirks});
        EXPECT_EQ(v.kind, Verdict::Kind::kFailed) << v.case_id << " quirks " << quirks;
        EXPECT_TRUE(v.departures.empty());
        EXPECT_THAT(v.first_difference, HasSubstr(text)) << v.case_id;
        EXPECT_THAT(v.first_difference, HasSubstr("step " + std::to_string(where)));
      }
    }
    EXPECT_EQ(changed_cases, 5);
  }
};

bool IsDefinedAccess(const Json& step) {
  return step["op"] == "dma" && step["spec"] == "defined" && !step["obs"].contains("quirk") &&
         !step.contains("obs_alt");
}

TEST_F(ScorerTest, WrongAddress) {
  ExpectFailure(
      "invalidation",
      [](Json& step) {
        if (!IsDefinedAccess(step) || !step["obs"]["segments"][0].contains("gpa")) return false;
        step["obs"]["segments"][0]["gpa"] = "0x7fff0000";
        return true;
      },
      "recorded");
}

TEST_F(ScorerTest, PassedInsteadOfBlocked) {
  ExpectFailure(
      "translation",
      [](Json& step) {
        if (!IsDefinedAccess(step) || !step["obs"]["segments"][0].contains("gpa")) return false;
        step["obs"]["segments"][0].erase("gpa");
        step["obs"]["segments"][0]["blocked"] = true;
        return true;
      },
      "is blocked");
}

TEST_F(ScorerTest, WrongReason) {
  ExpectFailure(
      "translation",
      [](Json& step) {
        if (!IsDefinedAccess(step) || step["obs"]["fault"].is_null()) return false;
        step["obs"]["fault"]["reason"] = 9 + step["obs"]["fault"]["reason"].get<int>();
        return true;
      },
      "recorded fault");
}

TEST_F(ScorerTest, MissingFault) {
  ExpectFailure(
      "translation",
      [](Json& step) {
        // A fault other than 5 or 6: those QEMU may leave out on an IOTLB hit.
        if (!IsDefinedAccess(step) || step["obs"]["fault"].is_null()) return false;
        const int reason = step["obs"]["fault"]["reason"];
        if (reason == 5 || reason == 6) return false;
        step["obs"]["fault"] = nullptr;
        return true;
      },
      "recorded no fault");
}

TEST_F(ScorerTest, WrongHead) {
  ExpectFailure(
      "iq",
      [](Json& step) {
        if (step["op"] != "qi" || step.contains("obs_alt")) return false;
        step["obs"]["iqh"] = "0xff0";
        return true;
      },
      "IQH is");
}

TEST_F(ScorerTest, WrongStatusWord) {
  ExpectFailure(
      "iq",
      [](Json& step) {
        if (step["op"] != "qi" || step.contains("obs_alt") || !step["obs"].contains("status")) {
          return false;
        }
        step["obs"]["status"][0][1] = "0xdeadbeef";
        return true;
      },
      "recorded 0xdeadbeef");
}

TEST_F(ScorerTest, WrongShadow) {
  ExpectFailure(
      "shadow",
      [](Json& step) {
        if (!step.contains("flat") || step["spec"] != "defined" || step["flat"]["0x0030"].empty()) {
          return false;
        }
        step["flat"]["0x0030"][0][2] = "0x7ff000";
        return true;
      },
      "our shadow of 0x0030");
}

TEST_F(ScorerTest, WrongCall) {
  ExpectFailure(
      "shadow",
      [](Json& step) {
        if (!step.contains("flat") || step["obs"]["events"]["0x0030"].empty()) return false;
        step["obs"]["events"]["0x0030"].erase(0);
        return true;
      },
      "calls of 0x0030");
}

// One case in a file of its own: what the file says is wrong is named with file and line.
class BadInputTest : public ::testing::Test {
 protected:
  absl::Status Run(const std::string& second_line) {
    path_ = ::testing::TempDir() + "/bad_case.jsonl";
    std::ofstream(path_) << R"({"id":"x","suite":"iq","aw_bits":48,"steps":[]})"
                         << "\n"
                         << second_line << "\n";
    return RunFile(path_, {}).status();
  }
  std::string Step(const std::string& step) {
    return R"({"id":"y","suite":"iq","aw_bits":48,"steps":[)" + step + "]}";
  }
  void ExpectBad(const std::string& line, const std::string& text) {
    const absl::Status s = Run(line);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(s.message()), HasSubstr(path_ + ":2: "));
    EXPECT_THAT(std::string(s.message()), HasSubstr(text));
  }
  std::string path_;
};

TEST_F(BadInputTest, NamesFileAndLine) {
  ExpectBad("{", "malformed JSON");
  ExpectBad("[]", "is not an object");
  ExpectBad(R"({"id":"y","suite":"iq","aw_bits":57,"steps":[]})", "aw_bits");
  ExpectBad(R"({"id":"y","suite":"iq","aw_bits":48})", "'steps'");
  ExpectBad(Step(R"({"op":"jump"})"), "unknown operation 'jump'");
  ExpectBad(Step(R"({"op":"regr","off":"0x34","size":4,"obs":{"vol":"0x0"}})"),
            "steps[0].obs has an unknown field 'vol'");
  ExpectBad(Step(R"({"op":"regr","off":"0x34"})"), "lacks 'size'");
  ExpectBad(Step(R"({"op":"regr","off":"52","size":4})"), "'off' is not a number");
  ExpectBad(Step(R"({"op":"regw","off":"0x34","size":3,"val":"0x0"})"), "neither 4 nor 8");
  ExpectBad(Step(R"({"op":"mem","w":[["0x0"]]})"), "not a list of 2");
  ExpectBad(Step(R"({"op":"qi","at":0,"entries":0,"base":"0x0","desc":[],"iqt":"0x0"})"),
            "'entries' is 0");
  ExpectBad(Step(R"({"op":"dma","sid":"0x10000","iova":"0x0","size":8,"walk":[]})"), "'sid'");
}

TEST_F(BadInputTest, NoFileAndEmptyFile) {
  EXPECT_EQ(RunFile("/nonexistent.jsonl", {}).status().code(), absl::StatusCode::kNotFound);
  const std::string path = ::testing::TempDir() + "/empty.jsonl";
  std::ofstream(path) << "\n";
  EXPECT_THAT(std::string(RunFile(path, {}).status().message()), HasSubstr("holds no case"));
}

// Whatever a damaged line still says is refused or run; neither ends the program.
TEST(DamagedLineTest, IsRefusedOrRun) {
  std::mt19937_64 random(7);
  int refused = 0, run = 0;
  for (const Suite& suite : kSuites) {
    auto lines = LineReader::Open(DataFile(suite.name), kMaxLine);
    ASSERT_TRUE(lines.ok());
    absl::string_view line;
    for (int n = 0; n < 40 && (*lines)->Next(&line); ++n) {
      std::string damaged(line);
      for (int i = 0; i <= n % 3; ++i) {
        constexpr char kBytes[] = "0123456789abcdef\"[]{},:-x";
        damaged[random() % damaged.size()] = kBytes[random() % (sizeof(kBytes) - 1)];
      }
      const auto parsed = ParseCase(damaged);
      if (!parsed.ok()) {
        EXPECT_FALSE(parsed.status().message().empty());
        ++refused;
        continue;
      }
      RunCase(*parsed, {});
      ++run;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(run, 0);
}

TEST(SummaryTest, CountsAndDepartures) {
  FileReport report{"a.jsonl", {}};
  report.verdicts.push_back({Verdict::Kind::kPassed, "p", "", {}});
  report.verdicts.push_back({Verdict::Kind::kFailed, "f", "step 3: wrong", {}});
  report.verdicts.push_back(
      {Verdict::Kind::kDeparts, "d", "step 4: other", {Departure::kReservedAndPermission}});
  const std::vector<FileReport> reports = {report};
  EXPECT_EQ(ToText(reports, false),
            "a.jsonl: 1 passed, 1 failed, 1 depart as documented\n"
            "1 depart as documented (rsvd-and-perm 1)\n"
            "1 passed, 1 failed\n");
  EXPECT_EQ(ToText(reports, true),
            "a.jsonl: 1 passed, 1 failed, 1 depart as documented\n"
            "  f failed: step 3: wrong\n"
            "  d departs: step 4: other\n"
            "1 depart as documented (rsvd-and-perm 1)\n"
            "1 passed, 1 failed\n");
}

}  // namespace
}  // namespace viommu::conformance
