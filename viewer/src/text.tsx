// Names, which may be broken after an underscore or a dot.
export const Breakable = ({ text }: { text: string }) => (
  <>{text.split(/(?<=[_.])/).flatMap((part, k) => (k ? [<wbr key={k} />, part] : [part]))}</>
);
