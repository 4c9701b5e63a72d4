// How many instructions a core issues: no-ops against a chain of additions, which takes a cycle each (of a register:
// some cores add constants while they rename). A core by itself issues all it can; one whose front end also serves a
// neighbour on the same physical core, half of that.
#if defined(__x86_64__)
#define ADD_ONE "add %1, %0"
#elif defined(__aarch64__)
#define ADD_ONE "add %0, %0, %1"
#endif

namespace {
constexpr long kPerRound = 64;
}

// Both return how many instructions they ran.
extern "C" double no_ops(long rounds) {
  for (long round = 0; round < rounds; ++round) asm volatile(".rept 64\n\tnop\n\t.endr");
  return static_cast<double>(kPerRound * rounds);
}

extern "C" double dependent_additions(long rounds) {
  long sum = 0;
  const long one = 1;
  for (long round = 0; round < rounds; ++round) asm volatile(".rept 64\n\t" ADD_ONE "\n\t.endr" : "+r"(sum) : "r"(one));
  return static_cast<double>(sum);
}
