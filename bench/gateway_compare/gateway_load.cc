// Loads a gateway, or workers directly, and prints one JSON object. On the way it prints "begin" and "end" where the
// measured window begins and ends, for whoever reads the gateway's CPU time there.
//
// gateway_load ports=30000 connections=64 rate=0 warm-up=1 seconds=3 groups=16 system-chars=150 question-chars=20
// stream=0
//              max-tokens=16 spread=0 seed=1
// rate=0: a closed loop of so many connections; else so many requests per second, by a Poisson process.
#include <cstdio>

#include "arguments.h"
#include "http_load.h"

int main(int argc, char** argv) {
  using namespace sluice;
  compare::Arguments arguments(argc, argv);
  const double rate = arguments.number("rate", 0);
  const auto workload = gateway::make_groups({.groups = arguments.count("groups", 16),
                                              .system_chars = arguments.count("system-chars", 150),
                                              .question_chars = arguments.count("question-chars", 20),
                                              .rate = rate,
                                              .seed = static_cast<uint64_t>(arguments.count("seed", 1))});
  compare::LoadOptions options;
  options.ports = arguments.ports("ports");
  options.connections = arguments.count("connections", 64);
  options.open_loop = rate > 0;
  options.stream = arguments.count("stream", 0) != 0;
  options.max_tokens = arguments.count("max-tokens", 16);
  options.warm_up = from_seconds(arguments.number("warm-up", 1));
  options.window = from_seconds(arguments.number("seconds", 3));
  options.spread = from_seconds(arguments.number("spread", 0));
  arguments.done();

  const auto say = [](const char* line) {
    std::puts(line);
    std::fflush(stdout);
  };
  compare::HttpLoad load(options, *workload);
  load.on_begin = [&] { say("begin"); };
  load.on_end = [&] { say("end"); };
  auto result = load.run();
  if (!result.ok()) compare::Arguments::fail_or_die(result.error().message);
  say(("{" + compare::to_json(*result) + "}").c_str());
}
