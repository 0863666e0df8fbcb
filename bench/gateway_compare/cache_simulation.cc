// One run of the cache simulation over sockets: starts the workers, prints "ports a,b,c,d", and waits for a line with
// the port of a gateway in front of them, or "oracle". Then it loads that and prints one JSON object; "begin" and "end"
// stand before it where the measured window begins and ends.
//
// cache_simulation hot=0 rate=400 concurrency=0 stream=0 render=0 warm-up=2 seconds=30 seed=1
// The rules are those of `sluice bench policy`: 64 groups that share 8,192 characters, questions of 512.
#include <sys/prctl.h>

#include <cstdio>
#include <iostream>

#include "arguments.h"
#include "cache_fleet.h"

namespace {

void say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

std::string joined(const auto& values) {
  std::string text;
  for (const auto value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace sluice;
  compare::Arguments arguments(argc, argv);
  const int64_t concurrency = arguments.count("concurrency", 0);
  gateway::GroupsOptions groups{.hot = arguments.count("hot", 0) != 0, .rate = arguments.number("rate", 400)};
  groups.seed = static_cast<uint64_t>(arguments.count("seed", 1));
  if (concurrency > 0) groups.rate = 0;
  compare::LoadOptions options;
  options.connections = concurrency > 0 ? concurrency : 128;
  options.open_loop = concurrency == 0;
  options.stream = arguments.count("stream", 0) != 0;
  options.warm_up = from_seconds(arguments.number("warm-up", 2));
  options.window = from_seconds(arguments.number("seconds", 30));
  compare::FleetRules rules;
  rules.renders = arguments.count("render", 0) != 0;
  arguments.done();
  prctl(PR_SET_TIMERSLACK, 1UL);  // for the threads to come

  const auto fleet = compare::CacheFleet::start(rules);
  if (!fleet.ok()) compare::Arguments::fail_or_die(fleet.error().message);
  say("ports " + joined((*fleet)->ports()));
  std::string target;
  if (!std::getline(std::cin, target)) return 0;

  const bool oracle = target == "oracle";
  options.ports = oracle ? (*fleet)->ports() : std::vector{static_cast<uint16_t>(std::atoi(target.c_str()))};
  const auto workload = gateway::make_groups(groups);
  compare::HttpLoad load(options, *workload);
  if (oracle) load.route = [&](const std::string& text) { return (*fleet)->choose_best(text); };
  compare::FleetCounts counts;
  load.on_begin = [&] {
    (*fleet)->reset_counts();
    say("begin");
  };
  load.on_end = [&] {
    counts = (*fleet)->counts();
    say("end");
  };
  auto result = load.run();
  if (!result.ok()) compare::Arguments::fail_or_die(result.error().message);
  const double hit = counts.prompt_tokens == 0
                         ? 0
                         : static_cast<double>(counts.cached_tokens) / static_cast<double>(counts.prompt_tokens);
  say(fmt::format(R"({{{},"hit_rate":{:.4f},"requests_per_s":{:.2f},"by_worker":[{}]}})", compare::to_json(*result),
                  hit, static_cast<double>(result->requests) / result->seconds, joined(counts.by_worker)));
}
